"""Any OpenIGTLink program can show the needle; this one uses pyigtl.  Coordinates are RAS, as displays expect.

    python openigtlink_client.py --port 18944

`NeedleTipToCT` is the needle's tip in the CT.  Its metadata say whether it is to be believed; a display that cannot
read them sees the needle 10 m away.  `Guidance` is the whole frame as JSON.
"""

import argparse
import contextlib
import json
import time

import pyigtl

SILENCE_S = 0.3


def main() -> None:
    """Show the tip until interrupted."""
    parser = argparse.ArgumentParser(description="Prints where a navsrv server sees the needle.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=18944)
    args = parser.parse_args()
    client = pyigtl.OpenIGTLinkClient(args.host, args.port)
    while True:
        message = client.wait_for_message("NeedleTipToCT", timeout=SILENCE_S)
        if message is None:
            print(f"FAULT  nothing for {1000 * SILENCE_S:.0f} ms", flush=True)
        elif message.metadata.get("TransformStatus") != "OK":
            print(f"{message.metadata.get('GuidanceState', 'no status')}  the needle's place is not known", flush=True)
        else:
            r, a, s = message.matrix[:3, 3]
            frame = client.wait_for_message("Guidance", timeout=0)
            alarms = [] if frame is None else [alarm["text"] for alarm in json.loads(frame.string)["alarms"]]
            print(f"OK  tip R {r:.1f} A {a:.1f} S {s:.1f} mm  {'; '.join(alarms)}", flush=True)
        time.sleep(0.2)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
