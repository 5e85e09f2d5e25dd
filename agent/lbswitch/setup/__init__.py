"""`lbswitch init` and `lbswitch uninstall`: plug into somebody else's nginx or HAProxy, and out again.

detect      what runs or is installed here, and how it is controlled
proposal    wishes and findings become a Plan: every file that would be touched, before and after
carry_out   does it as one transaction, with a record on disk from which a crash is undone
removal     the way back: byte for byte, or only our lines where the owner has edited since
"""
