"""The service that ``deployd demo`` deploys: one file, ``server.py``, which a build holds beside its VERSION."""
