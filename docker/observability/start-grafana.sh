#!/bin/sh
# Grafana would take an empty password for its well-known default.
set -eu
: "${GF_SECURITY_ADMIN_PASSWORD:?set GRAFANA_PASSWORD in .env}"
exec /run.sh "$@"
