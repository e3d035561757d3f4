"""What a strategy does to a fleet, before anybody enables anything: virtual hosts, virtual time, faults on purpose.

The planner, the cycle, the strategy, admission and the bookkeeping of looks are the real ones; coordination is the one in memory
that is held to the same contract as ZooKeeper's. Imagined are only time, disks and the instances. One process, one thread, one
heap of events, and everything from a seed: the same seed gives the same trace, byte for byte.

::

    scenario.py    what is simulated: hosts, spec, how the world behaves
    found.py       what is there before the build is enabled, if that is not a fleet that is well
    faults.py      the closed list of faults, and how they are written
    injecting.py   carries them out
    agenda.py      virtual time
    instance.py    an instance, as it really is
    host.py        an agent on its host: observe → plan → act
    looks.py       when it looks at its instances
    acting.py      what acts do to a virtual host
    world.py       hosts, ensemble and time put together
    invariants.py  what must hold at every moment
    record.py      what happened: trace, curves, timeline
    runner.py      one seed, and what came of one or many
    seeds.py       many seeds, on as many cores as there are
    picture.py     a run in characters; svg.py: the same as a drawing
"""
