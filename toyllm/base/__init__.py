"""What every other package stands on: errors, scripts, files, devices. It imports none of them.

errors      what may end a script, and messages that name the nearest right spelling
starting    says that a script has started, before slow imports
scripts     how a script starts and ends: one line for an error, an exit status
arguments   limits and presets of command-line arguments
system      what differs between operating systems: locks, signals, processors, paths
files       files read within limits, and written whole or not at all
devices     every processor core a device; how arrays are placed on them
"""
