"""The benchmark: rtunnel beside ssh(1), asyncssh and paramiko, in one run.

    rtunnel bench all --json figures.json --report figures.html

Everything runs on this machine, over loopback, each part as a process of its own: an
sshd, the gateway, the targets, the visitors, the peer that is measured, and a link
with delay, rate and queue in user space. Figures of different runs are not compared:
each round measures every peer once, in turn, and a ratio is the median of the rounds'
ratios.

Who does what: `scenarios` has one module for each thing that is measured, on what
`scenario` provides; `run` takes the rounds; `results` keeps figures, medians and
ratios, and is the JSON file; `table` prints them, `report` and `plots` draw them;
`environment` says where. Run as programs of their own: `peers` (the tunnels that are
compared), `load` (targets and visitors), `link`, `gateway`, `files`, `relaying`.
`process`, `ports` and `sshd` start and watch them.
"""
