# docker build -t orchmgmt .
# docker run --read-only --tmpfs /tmp --volume orchmgmt:/data --publish 127.0.0.1:8441:8441 \
#     --cap-drop ALL --security-opt no-new-privileges --stop-timeout 90 orchmgmt
#
# For the tests of your own systems (docs/testing.md):
# docker run --publish 127.0.0.1:8441:8441 --publish 127.0.0.1:8442:8442 orchmgmt test-server \
#     --host 0.0.0.0 --port 8441 --control-host 0.0.0.0 --control-port 8442

FROM python:3.13-slim AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/orchmgmt
RUN /opt/orchmgmt/bin/pip install --no-cache-dir '.[certificate,cors,dotenv,metrics,mqtt,openapi,postgresql,testing-tls]'

FROM python:3.13-slim
COPY --from=build /opt/orchmgmt /opt/orchmgmt
# Docker copies this folder, with its owner, into a new volume.
RUN install --directory --owner=10001 --group=10001 --mode=0750 /data
ENV PYTHONDONTWRITEBYTECODE=1 \
    ORCHMGMT_DATABASE_URL=sqlite:////data/orchmgmt.db \
    ORCHMGMT_HOST=0.0.0.0 \
    ORCHMGMT_PORT=8441
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8441
# The check uses these variables, so set another port or a Unix socket with them, not with an option.
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s CMD ["/opt/orchmgmt/bin/python", "-c", "import http.client, os, socket, sys; e = os.environ; path = e.get('ORCHMGMT_UNIX_SOCKET'); c = http.client.HTTPConnection('localhost', timeout=5); c.sock = socket.socket(socket.AF_UNIX) if path else socket.create_connection((e['ORCHMGMT_HOST'], e['ORCHMGMT_PORT']), 5); c.sock.settimeout(5); path and c.sock.connect(path); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["/opt/orchmgmt/bin/orchmgmt"]
CMD ["serve"]
