"""The command `processor`.

interrupt      exits silently on Ctrl-C while the command line imports modules
shadow         finds a file of the user's that shadows this package
shipped        files that are installed with the program: sample settings, units, the guide
unit           compares the time limits of the systemd unit with the settings
output         what all commands print: tables, JSON, messages, errors and their exit codes
findings       prints findings, one line per check
group          a group of commands that suggests the nearest name
completion     completes commands and options in the user's shell
config_option  the option -c, before or behind a command
options        what operators write: durations, times, ids; and the sessions that a command needs
doctor/        the checks of `processor doctor`
commands/      the commands, one module a noun
main           the table of commands, and the entry point
"""
