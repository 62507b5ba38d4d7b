"""`python -m predictor`: serve one model directory."""

import sys

from predictor import threads


def main() -> int:
    threads.bound()
    from predictor import server

    return server.main(server.parser("python -m predictor"), server.serve)


if __name__ == "__main__":
    sys.exit(main())
