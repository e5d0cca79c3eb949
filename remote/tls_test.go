package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// testCA is a certificate authority nobody else trusts.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &testCA{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a certificate for 127.0.0.1, good for servers and clients.
func (ca *testCA) issue(t *testing.T, name string) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func (ca *testCA) pair(t *testing.T, name string) tls.Certificate {
	t.Helper()
	cert, key := ca.issue(t, name)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// newTLSRegistry is a testRegistry with a certificate of ca, which asks for one of ca where clientCert says so.
func newTLSRegistry(t *testing.T, ca *testCA, clientCert bool) *testRegistry {
	r := &testRegistry{t: t, content: map[string][]byte{}, types: map[string]string{}}
	r.Server = httptest.NewUnstartedServer(r)
	r.TLS = &tls.Config{Certificates: []tls.Certificate{ca.pair(t, "server")}}
	if clientCert {
		pool := x509.NewCertPool()
		pool.AddCert(ca.cert)
		r.TLS.ClientCAs, r.TLS.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	r.Config.ErrorLog = discardLog()
	r.StartTLS()
	t.Cleanup(r.Server.Close)
	return r
}

func TestTLS(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	plain, withCert, noTLS := newTLSRegistry(t, ca, false), newTLSRegistry(t, ca, true), newTestRegistry(t)
	for _, r := range []*testRegistry{plain, withCert, noTLS} {
		r.image("a/b", "1", "linux/amd64", []byte("layer"))
	}
	yes, no := true, false
	for _, tt := range []struct {
		name     string
		registry *testRegistry
		config   *Config
		access   Access
		message  string // of the error; "" = none
	}{
		{"unknown authority", plain, nil, Access{}, "--ca-certs"},
		{"CA by flag", plain, nil, Access{CACerts: ca.pem}, ""},
		{"CA by config", plain, &Config{CACerts: ca.pem}, Access{}, ""},
		{"CA of the host", plain, &Config{Hosts: map[string]*Host{plain.host(): {CACerts: ca.pem}}}, Access{}, ""},
		{"CA of another host", plain, &Config{Hosts: map[string]*Host{"x": {CACerts: ca.pem}}}, Access{}, "--ca-certs"},
		{"skip_verify", plain, &Config{Hosts: map[string]*Host{plain.host(): {SkipVerify: true}}}, Access{}, ""},
		{"client certificate missing", withCert, &Config{CACerts: ca.pem}, Access{}, "client_cert"},
		{"client certificate", withCert, &Config{Hosts: map[string]*Host{withCert.host(): {CACerts: ca.pem, ClientCert: []tls.Certificate{ca.pair(t, "client")}}}}, Access{}, ""},
		{"plain HTTP refused", noTLS, nil, Access{Insecure: &no}, "--insecure"},
		{"plain HTTP by flag", noTLS, nil, Access{Insecure: &yes}, ""},
		{"plain HTTP by config", noTLS, &Config{Hosts: map[string]*Host{noTLS.host(): {Insecure: true}}}, Access{}, ""},
		{"flag against config", noTLS, &Config{Hosts: map[string]*Host{noTLS.host(): {Insecure: true}}}, Access{Insecure: &no}, "--insecure"},
		{"bad PEM", plain, nil, Access{CACerts: []byte("x")}, "PEM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newTestClient(t, Options{Config: tt.config})
			tt.access.Platform = "linux/amd64"
			_, err := c.Resolve(context.Background(), tt.registry.host()+"/a/b:1", tt.access)
			switch {
			case tt.message == "" && err != nil:
				t.Error(err)
			case tt.message != "" && (!errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), tt.message)):
				t.Errorf("got %v", err)
			}
		})
	}
}
