package remote

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// transportKey is what connections may be shared by.
type transportKey struct{ host, ca string }

// network is connections, those in use and those made ahead.
type network struct {
	*http.Transport
	warmer *warmer
}

// idleTimeout is how long a connection nobody uses is kept.
const idleTimeout = 90 * time.Second

// transport returns the connections to a host; the caller holds c.mu. Hosts that config.json says nothing about share
// theirs.
func (c *Client) transport(host string, ca []byte) (*network, error) {
	cfg := c.config.Hosts[host]
	key := transportKey{ca: digestKey(ca)}
	if cfg != nil {
		key.host = host
	} else {
		cfg = &Host{}
	}
	if t := c.transports[key]; t != nil {
		return t, nil
	}
	tlsConfig, err := tlsSettings(cfg, c.config.CACerts, ca)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:               c.options.Proxy,
		TLSClientConfig:     tlsConfig,
		TLSHandshakeTimeout: 10 * time.Second,
		// Ranges of one blob travel over several connections: one of HTTP/2 has one congestion window, and one lost packet
		// holds up all of its streams.
		Protocols:           new(http.Protocols),
		MaxIdleConnsPerHost: c.options.ConnsPerHost,
		IdleConnTimeout:     idleTimeout,
		// Blobs are compressed already, and a Range of a transparently inflated body would mean something else.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         32 << 10,
		ExpectContinueTimeout:  time.Second,
	}
	t.Protocols.SetHTTP1(true)
	if t.Proxy == nil {
		t.Proxy = http.ProxyFromEnvironment
	}
	w := &warmer{client: c, dial: c.options.Dial, tls: tlsConfig, ready: map[string][]*warmConn{}, since: map[string]time.Time{}}
	if w.dial == nil {
		w.dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	t.DialContext, t.DialTLSContext = w.dialTCP, w.dialTLS
	n := &network{t, w}
	c.transports[key] = n
	return n, nil
}

// tlsSettings adds roots to the system's, never replacing them.
func tlsSettings(cfg *Host, roots ...[]byte) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: cfg.ClientCert, InsecureSkipVerify: cfg.SkipVerify,
		ClientSessionCache: tls.NewLRUClientSessionCache(0)} // one certificate check for many connections
	for _, pem := range append(roots, cfg.CACerts) {
		if len(pem) == 0 {
			continue
		}
		if t.RootCAs == nil {
			pool, err := x509.SystemCertPool()
			if err != nil {
				return nil, fmt.Errorf("read the system's CA certificates: %w", err)
			}
			t.RootCAs = pool
		}
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("the CA certificates given hold no PEM certificate")
		}
	}
	return t, nil
}

// tlsError is a handshake that will not do better next time.
type tlsError struct {
	err  error
	hint string
}

func (e *tlsError) Error() string { return e.err.Error() }
func (e *tlsError) Unwrap() error { return e.err }

// speaksHTTP says whether a handshake was answered in plain HTTP.
func speaksHTTP(err error) bool {
	var record tls.RecordHeaderError
	return errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/"
}

// explainTLS recognises errors of a handshake that a user has to do something about.
func explainTLS(err error, host string) error {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		alert     *net.OpError
	)
	switch {
	case speaksHTTP(err):
		return &tlsError{err, fmt.Sprintf("the registry speaks plain HTTP: allow it with --insecure or registries.hosts.%q.insecure in config.json", host)}
	case errors.As(err, &authority):
		return &tlsError{err, "add the registry's CA with --ca-certs or registries.ca_certs in config.json"}
	case errors.As(err, &hostname), errors.As(err, &invalid):
		return &tlsError{err, "the registry's certificate is wrong or out of date: its operator has to renew it"}
	case errors.As(err, &alert) && alert.Op == "remote error": // how crypto/tls reports a server's alert
		return &tlsError{err, fmt.Sprintf("the registry refused the handshake: if it wants a client certificate, set registries.hosts.%q.client_cert and client_key", host)}
	}
	return err
}
