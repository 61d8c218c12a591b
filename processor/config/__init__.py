"""Settings: declared once, loaded, checked.

addresses            Addresses of servers: is this one, how does libpq want it, and how may it be
declaration          How a setting is declared: once, with its default, reason, unit and check.
loader               Where the settings come from: file, mapping, environment.
settings             The settings: each declared here, once, and nowhere else.
yaml_file            A YAML file as plain values, with the line of every name in it.
"""
