"""The service as the proof runs it: python -m proof.service <port>"""

import sys

from proof.fault_injection import prepare
from proof.guards import take_away_named


def main(port: int) -> None:
    prepare()
    take_away_named()

    import uvicorn

    from main import create_app

    uvicorn.run(
        create_app(),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
