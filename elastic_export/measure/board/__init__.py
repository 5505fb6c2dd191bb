"""What runs on the board: standard library only, Python 3.6 syntax, joined into one file.

``compose`` makes ``on_device.py`` of these modules and every bundle carries it. Boards keep the
Python of their JetPack (3.6 on the Jetson Nano of 2019), have neither torch nor this package, and
often no network. Hence no type syntax, library or habit that came after 3.6 in here.
"""
