"""The server as a pod confines it: another user without a home, nothing to write to but a volume for the log, nobody
to call."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import predictor_models as models
import pytest

TOOLS = ("unshare", "setpriv", "mount", "ip")
USER = "65534"
CONFINE = f"""
set -eu
ip link set lo up
mount --bind "$1" /mnt
mount -t tmpfs -o mode=755 dev /media
for node in null zero random urandom; do touch /media/$node; mount --bind /dev/$node /media/$node; done
touch /media/termination-log; chmod 666 /media/termination-log
mount --move /media /dev
while read -r _ where _; do
  case $where in /dev*) ;; *) mount -o remount,bind,ro "$where" 2>/dev/null || true ;; esac
done < /proc/mounts
mount -t tmpfs -o mode=777 volume /srv
cd /
exec env -i PATH="$PATH" setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs \
  --bounding-set=-all,+dac_read_search --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search "$2" "$3"
"""
"""The capability to read everything is for an interpreter that lies in somebody's home."""


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason=f"needs root and {', '.join(TOOLS)}"
)
def test_a_confined_server(tmp_path: Path) -> None:
    models.write(tmp_path)
    tmp_path.chmod(0o755)
    script = Path(__file__).parents[1] / "predictor_confined.py"
    confined = ["unshare", "--net", "--mount", "--", "sh", "-c", CONFINE, "sh",
                str(tmp_path), sys.executable, str(script)]  # fmt: skip
    done = subprocess.run(confined, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["uid"], seen["home"], seen["writable"]) == (int(USER), None, False)
    assert seen["status"] == 200 and seen["answer"]["predictions"]
    assert 'serin_requests_total{code="200",model="churn",revision="churn-00001"} 1.0' in seen["metrics"]
    assert seen["ended"] == 0 and seen["logged"] == 1
    assert seen["calls_are_seen"] and seen["calls"] == 0
    assert seen["refused"] == 2 and "digest is sha256:" in seen["message"]
