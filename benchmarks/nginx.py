"""nginx with one worker."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import zlib

import trustme
from scenarios import KIB, MIB

# What differs from request to request is what no client can have seen before
CONFIG = """
daemon off;
worker_processes 1;
worker_rlimit_nofile %(files)d;
pid nginx.pid;
error_log error.log;
events { worker_connections %(connections)d; multi_accept on; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;

    root files;
    default_type text/plain;
    sendfile on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_max_body_size 0;
    ssi_types *;

    map $request_id $span { "~^(?<part>.{16})" $part; }
    upstream post { server 127.0.0.1:%(post)d; keepalive 64; }

    server {
        listen 127.0.0.1:%(plain)d backlog=4096;
        listen 127.0.0.1:%(tls)d ssl backlog=4096;
        ssl_certificate certificate.pem;
        ssl_certificate_key certificate.pem;

        add_header Cache-Control no-cache;
        add_header ETag '"$request_id"';
        add_header Traceparent 00-$request_id-$span-01;
        add_header X-Request-Id $request_id;
        add_header X-Response-Time $msec;

        location = /small { return 200 'Hello, world\\n'; }
        location = /close { keepalive_timeout 0; return 200 'Hello, world\\n'; }
        location ~ ^/echo/(?<name>.*) { return 200 $name; }
        location = /post {
            # Answered only once the body has arrived
            proxy_pass http://post;
            proxy_http_version 1.1;
            proxy_set_header Connection '';
        }
        location /hold/ { proxy_pass http://127.0.0.1:%(hold)d; }
        location /uploads/ { dav_methods PUT; }

        # Server-side includes make the length unknown
        location /chunked/ { alias files/; ssi on; sendfile off; output_buffers 2 8k; }
    }
    server {
        listen 127.0.0.1:%(post)d;
        location / { return 200 '$request_method $content_length'; }
    }
}
"""


class Server:

    def __init__(self, files, hold_port):
        shared = '/dev/shm'
        roomy = os.path.isdir(shared) and shutil.disk_usage(shared).free > 256 * MIB
        self.folder = tempfile.mkdtemp(
            prefix='lowhaio-benchmark-', dir=shared if roomy else None)
        for name in ('files', 'files/uploads'):
            os.mkdir(self.path(name))

        # A < could start a server-side include
        data = os.urandom(8 * MIB).replace(b'<', b'.')
        self.checksums = {
            size: self._written(name, data[:size])
            for name, size in (('100k', 100 * KIB), ('8m', 8 * MIB))}

        authority = trustme.CA()
        self.certificate = self.path('authority.pem')
        authority.cert_pem.write_to_path(self.certificate)
        authority.issue_cert('127.0.0.1', 'localhost').private_key_and_cert_chain_pem \
            .write_to_path(self.path('certificate.pem'))

        self.plain, self.tls, post = free_ports(3)
        with open(self.path('nginx.conf'), 'w') as file:
            file.write(CONFIG % {
                'files': files, 'connections': min(files - 64, 16384), 'plain': self.plain,
                'tls': self.tls, 'post': post, 'hold': hold_port})
        self.process = self._started()

    def _written(self, name, data):
        with open(self.path('files/' + name), 'wb') as file:
            file.write(data)
        return zlib.crc32(data)

    def _started(self):
        command = [binary(), '-p', self.folder + '/', '-c', 'nginx.conf']
        if os.geteuid() == 0:
            command += ['-g', 'user root;']  # The folder is for this user only
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(500):
            try:
                socket.create_connection(('127.0.0.1', self.plain)).close()
                return process
            except ConnectionRefusedError:
                if process.poll() is not None:
                    break
                time.sleep(0.01)
        with open(self.path('error.log')) as file:
            raise RuntimeError('nginx does not start: ' + file.read())

    def path(self, name):
        return os.path.join(self.folder, name)

    def close(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder)


def binary():
    return shutil.which('nginx', path=os.environ.get('PATH', '') + ':/usr/sbin')


def free_ports(number):
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(number)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
