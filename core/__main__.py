"""`python -m core`: the verbs on a terminal."""

from core.terminal.app import main

if __name__ == "__main__":
    main()
