"""``python -m deployd_core`` is `deployd`."""

from deployd_core.cli.main import main

if __name__ == "__main__":
    main()
