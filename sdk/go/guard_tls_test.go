package memtrace

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority signs certificates for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // PEM
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	der := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}, nil, a.key, a.key)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.file = writePEM(t, "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign makes a certificate; without a parent it is its own.
func sign(t *testing.T, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func writePEM(t *testing.T, kind string, der []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), kind+".pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (a *authority) issue(t *testing.T, usage x509.ExtKeyUsage) (certFile, keyFile string) {
	t.Helper()
	key := newKey(t)
	der := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, a.cert, key, a.key)
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, "CERTIFICATE", der), writePEM(t, "PRIVATE KEY", plain)
}

// client trusts the authority and shows the certificate in the files, where given.
func (a *authority) client(t *testing.T, certFile, keyFile string) *http.Client {
	t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AddCert(a.cert)
	if certFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func statusOf(client *http.Client, url, token string) (int, error) {
	r, err := http.NewRequest("GET", url+"/debug/pprof/heap", nil)
	if err != nil {
		return 0, err
	}
	if token != "" {
		r.Header.Set("X-Pprof-Token", token)
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func TestTLS(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.issue(t, x509.ExtKeyUsageServerAuth)
	e := open(t, GuardTLS(cert, key))
	url := "https://" + e.Addr().String()
	client := ca.client(t, "", "")
	for token, want := range map[string]int{goodToken: 200, "": 403, "wrong-wrong-wrong": 403} {
		if status, err := statusOf(client, url, token); err != nil || status != want {
			t.Errorf("%q: %d %v", token, status, err)
		}
	}
	if status, _, _ := raw(t, e.Addr().String(), "GET /debug/pprof/heap HTTP/1.1\r\nHost: localhost\r\nX-Pprof-Token: "+goodToken+"\r\n\r\n"); status != 400 {
		t.Errorf("plain HTTP: %d", status)
	}
	old := ca.client(t, "", "")
	old.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS11
	if status, err := statusOf(old, url, goodToken); err == nil {
		t.Errorf("TLS 1.1: %d", status)
	}
}

func TestClientCertificates(t *testing.T) {
	ca, stranger := newAuthority(t, "ca"), newAuthority(t, "stranger")
	cert, key := ca.issue(t, x509.ExtKeyUsageServerAuth)
	clientCert, clientKey := ca.issue(t, x509.ExtKeyUsageClientAuth)
	strangeCert, strangeKey := stranger.issue(t, x509.ExtKeyUsageClientAuth)
	enable(t)
	mux := http.NewServeMux()
	e, err := Guard(mux, GuardListen("127.0.0.1:0"), GuardTLS(cert, key), GuardClientCA(ca.file), GuardAuditLog(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	url := "https://" + e.Addr().String()
	if status, err := statusOf(ca.client(t, clientCert, clientKey), url, ""); err != nil || status != 200 {
		t.Errorf("with a certificate: %d %v", status, err)
	}
	for name, client := range map[string]*http.Client{
		"none":        ca.client(t, "", ""),
		"stranger's":  ca.client(t, strangeCert, strangeKey),
		"a server's ": ca.client(t, cert, key),
	} {
		if status, err := statusOf(client, url, goodToken); err == nil {
			t.Errorf("with %s certificate: %d", name, status)
		}
	}
	// Another server that serves the mux has checked no certificate, or another one.
	plain := httptest.NewServer(mux)
	defer plain.Close()
	if status, err := statusOf(http.DefaultClient, plain.URL, ""); err != nil || status != 403 {
		t.Errorf("through another listener: %d %v", status, err)
	}

	both := open(t, GuardTLS(cert, key), GuardClientCA(ca.file))
	client := ca.client(t, clientCert, clientKey)
	for token, want := range map[string]int{goodToken: 200, "": 403} {
		if status, err := statusOf(client, "https://"+both.Addr().String(), token); err != nil || status != want {
			t.Errorf("certificate and token %q: %d %v", token, status, err)
		}
	}
}
