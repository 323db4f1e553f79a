#!/bin/sh
# How these files were made, on 21 November 2026; they are valid until 2120. They protect nothing: the keys are public.
# `authority` signs `server`, `renewed` (the same name, another key) and `client`; `locked.key` is server.key under the password "sesame".
set -eu
cd "$(dirname "$0")"
days=34000
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
leaf() {
    key "$1.key"
    openssl req -new -key "$1.key" -subj "/CN=$1" -out request.pem
    printf 'basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n%s\n' \
        "extendedKeyUsage=$2
subjectAltName=DNS:localhost,IP:127.0.0.1" >extensions
    openssl x509 -req -in request.pem -CA authority.pem -CAkey authority.key -days $days -extfile extensions -out "$1.pem"
    rm request.pem extensions
}
key authority.key
openssl req -x509 -new -key authority.key -subj "/CN=callboard tests" -days $days -out authority.pem \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -addext "basicConstraints=critical,CA:TRUE"
leaf server serverAuth
leaf renewed serverAuth
leaf client clientAuth
openssl pkcs8 -topk8 -in server.key -out locked.key -v2 aes-256-cbc -passout pass:sesame
rm -f authority.key authority.srl
