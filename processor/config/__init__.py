"""Settings: declared once, loaded from a file or the environment, checked.

addresses    addresses of servers: checked, converted to the form of libpq, masked for display
declaration  how a setting is declared, and `Reader`, which builds records and collects problems
yaml_file    a YAML file as plain values, with the line of every name
settings     the settings, each with its default, and which combinations contradict each other
loader       merges file, mapping and environment; keeps the settings of this process
"""
