"""What all tests need: a shell that starts them in the background makes them ignore Ctrl-C, and their children too."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
