#!/bin/sh
# Makes a certificate authority for one federation, and the SuperLink's certificate.
#
#   sh certificates.sh HOST [FOLDER]
#
# HOST is the name, or the IPv4 address, under which hospitals reach the SuperLink.
# Keep ca.key off-line; give ca.pem to every hospital; server.pem and server.key stay at the SuperLink.
set -eu
host=$1
folder=${2:-certificates}
umask 077
mkdir "$folder"
cd "$folder"
case $host in
  *[!0-9.]*) name=DNS:$host ;;
  *) name=IP:$host ;;
esac
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1825 \
  -keyout ca.key -out ca.pem -subj "/CN=Cohortium federation" \
  -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign"
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
  -keyout server.key -out server.csr -subj "/CN=$host"
cat > server.cnf <<END
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $name, DNS:localhost, IP:127.0.0.1
END
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 \
  -out server.pem -extfile server.cnf
rm server.csr server.cnf ca.srl
openssl verify -CAfile ca.pem server.pem
