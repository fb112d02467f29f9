"""`python -m sweeps` is `dreamsweep`, where the code lies and nothing is installed."""

from sweeps.cli import main

if __name__ == "__main__":
    main()
