"""`python -m cai_dist` is the command `cai-dist`."""

from cai_dist.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
