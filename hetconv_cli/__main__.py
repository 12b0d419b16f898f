"""`python -m hetconv_cli`."""

from hetconv_cli.cli.main import main

if __name__ == "__main__":
    main()
