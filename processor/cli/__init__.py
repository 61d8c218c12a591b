"""The command `processor`.

group                A noun with its verbs: commands below one name, and a guess where the verb is
interrupt            Ctrl-C while the command line loads modules: the end, at once and without a w
main                 The command `processor`: one file a noun, found by name and loaded when it is
options              What operators write in a command: lengths of time, moments, ids of transacti
output               How every command speaks: data on stdout, words for people on stderr, one lin
shadow               Whether a file of the user's is found under our name, before this package or
shipped              Files that travel with the program: the sample of the settings, the units for
unit                 The time limits of the systemd unit, held against the settings.
doctor/              a package of its own
commands/            a package of its own
"""
