"""The command line: cliff commands, a module per noun; nothing but parsing, printing and exit codes."""
