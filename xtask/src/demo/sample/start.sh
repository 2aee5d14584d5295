# Starts the release and waits until it answers.
set -eu
case "$DROVER_HOST" in
  # PORTS
  *) echo "no port for $DROVER_HOST" >&2; exit 1 ;;
esac
mkdir -p "$DROVER_SHARED_PATH"
cd "$DROVER_CURRENT_PATH"
echo "starting {{ version }} on port $port from $(pwd -P)"
setsid python3 app.py "$port" "$DROVER_HOST" >"$DROVER_SHARED_PATH/app.log" 2>&1 </dev/null &
echo $! >"$DROVER_SHARED_PATH/app.pid"
python3 - "$port" <<'END'
import sys, time, urllib.request

url = f"http://127.0.0.1:{sys.argv[1]}/"
for attempt in range(200):
    try:
        page = urllib.request.urlopen(url, timeout=1).read().decode()
    except OSError:
        time.sleep(0.05)
        continue
    print("it answers:", page.splitlines()[2])
    sys.exit(0)
sys.exit(f"{url} does not answer")
END
