"""Stands between a host and the replica and lies, as a file says.

  lying_replica.py PORT REPLICA_PORT AUTHORITY CERTIFICATES LIE_FILE

It has the replica's certificate towards the host and host1's towards the replica. LIE_FILE holds one word, read anew
for each request; anything else is passed on as it is:

  nothing      a batch is answered as durable, complete and applied, and thrown away
  cut-answer   the same, and the answer ends in the middle of its text
  no-durable   a batch is thrown away and answered 200 {}
  ahead        the question for the expected batch is answered by one 1000 later
  behind       ... by batch 1
  short-hash   half of the digests of an image
  old-hash     the digests of the oldest point instead of the one asked for
  short-data   data ends before its length; fewer-data: the length says so, too
"""
import http.client
import http.server
import json
import re
import ssl
import sys

port, replica_port, authority, certificates, lie_file = sys.argv[1:]
towards_replica = ssl.create_default_context(cafile=authority)
towards_replica.load_cert_chain(certificates + "/host1.pem", certificates + "/host1.key")


class Liar(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        print(self.lie, *arguments, flush=True)

    def answer(self, status, headers, body, length=None):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        if length is not None and length != len(body):
            self.close_connection = True

    def ask(self, target, body):
        connection = http.client.HTTPSConnection("127.0.0.1", int(replica_port), context=towards_replica)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "content-length")}
        connection.request(self.command, target, body if body else None, headers)
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()

    def handle_one(self):
        self.lie = open(lie_file).read().strip()
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        target = self.path
        if self.command == "PUT" and self.lie in ("nothing", "cut-answer", "no-durable"):
            said = b"{}" if self.lie == "no-durable" else json.dumps(
                {"durable": True, "complete": True, "applied": True, "point": 1, "waits_for": []}).encode()
            said = said[:25] if self.lie == "cut-answer" else said
            return self.answer(200, [("content-type", "application/json")], said)
        if target.endswith("/hash") and self.lie == "old-hash":
            target = re.sub(r"/points/[^/]+/", "/points/1/", target)
        status, headers, data = self.ask(target, body)
        length = None
        if self.command == "HEAD":
            length = int(dict((k.lower(), v) for k, v in headers)["content-length"])
        elif target.startswith("/v1/sources/") and self.lie in ("ahead", "behind"):
            said = json.loads(data)
            said["expected"] = said["expected"] + 1000 if self.lie == "ahead" else 1
            data = json.dumps(said).encode()
        elif target.endswith("/hash") and self.lie == "short-hash":
            said = json.loads(data)
            said["digests"] = said["digests"][: len(said["digests"]) // 2]
            data = json.dumps(said).encode()
        elif target.endswith("/data") and self.lie in ("short-data", "fewer-data"):
            length = len(data) if self.lie == "short-data" else None
            data = data[: len(data) // 2]
        self.answer(status, headers, data, length)

    do_GET = do_PUT = do_POST = do_HEAD = handle_one


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Liar)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificates + "/replica1.pem", certificates + "/replica1.key")
context.load_verify_locations(authority)
context.verify_mode = ssl.CERT_REQUIRED
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
