#!/bin/sh
# Prometheus reads the API's key from a file; here it goes from the environment into memory.
set -eu
: "${METRICS_KEY:?set it in .env, to a key made by: sharpzo keys create --name prometheus --scopes metrics}"
umask 077
printf %s "$METRICS_KEY" > "${TMPDIR:-/tmp}/metrics.key"
unset METRICS_KEY
exec prometheus "$@"
