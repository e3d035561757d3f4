"""ZooKeeper: the session, where things lie, and what hosts agree on there.

address
    where ZooKeeper is, and who we are to it
answers
    what it answers: nodes, events, refusals
transaction
    writes and checks that happen together or not at all
link
    the state of the connection
session
    the connection, and operations that never wait for ever
cache
    nodes that are read again only after they changed
layout
    paths and codecs: the only place with either
services
    specs, what is enabled, the rollout and the freeze
members
    which hosts belong to a service
permits
    grants and releases, each one transaction
status
    reports, and which agents are alive
coordination
    `deployd_core.coordination.Coordination`, made of these
"""
