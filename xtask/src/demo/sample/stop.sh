# Stops the application that runs, whichever release it is of.
set -eu
pid_file="$DROVER_SHARED_PATH/app.pid"
if [ ! -f "$pid_file" ]; then
  echo "nothing runs on {{ host.name }} yet"
  exit 0
fi
pid=$(cat "$pid_file")
alive() {
  kill -0 "$pid" 2>/dev/null && ! grep -qs '^State:[[:space:]]*Z' "/proc/$pid/status"
}
echo "stopping {{ previous_version or 'what runs' }} (process $pid)"
kill "$pid" 2>/dev/null || true
for _ in $(seq 100); do
  alive || break
  sleep 0.05
done
if alive; then
  echo "process $pid does not end" >&2
  exit 1
fi
rm -f "$pid_file"
