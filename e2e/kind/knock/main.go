// Knocks at a worker's port of requests as somebody who may not come in: in plain text, without a certificate, with one that was made
// here, and with that of another worker, which the controller's authority signed. Prints what each got; exits with 1 if any was heard,
// or was not refused for what it is: that nobody answers is no refusal.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: knock HOST:PORT FOLDER   (FOLDER: tls.crt and tls.key of another worker)")
		os.Exit(2)
	}
	host, folder := os.Args[1], os.Args[2]
	other, err := tls.LoadX509KeyPair(folder+"/tls.crt", folder+"/tls.key")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	own, err := made()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	wrong := 0
	for _, as := range []struct {
		who    string
		scheme string
		pairs  []tls.Certificate
		// What the port says then.
		words []string
	}{
		// A TLS alert, which is no HTTP.
		{"plain text", "http", nil, []string{`malformed HTTP response "\x15\x03`}},
		{"no certificate", "https", nil, []string{"tls: certificate required"}},
		{"a certificate of its own", "https", []tls.Certificate{own}, []string{"tls: unknown certificate authority", "tls: bad certificate"}},
		{"another worker's certificate", "https", []tls.Certificate{other}, []string{"tls: unsupported certificate", "tls: bad certificate"}},
	} {
		pairs := as.pairs
		settings := &tls.Config{InsecureSkipVerify: true}
		if len(pairs) > 0 {
			// Shown whatever authority the worker asks for.
			settings.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &pairs[0], nil
			}
		}
		client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: settings}}
		for _, request := range []struct{ method, path string }{
			{"GET", "/status"}, {"POST", "/stop"}, {"POST", "/savepoint"}, {"DELETE", "/status"},
		} {
			told := ""
			// The word that refuses may be lost when the port closes before all was sent.
			for try := 0; try < 5 && !strings.HasPrefix(told, "refused: ") && !strings.HasPrefix(told, "HEARD: "); try++ {
				call, _ := http.NewRequest(request.method, as.scheme+"://"+host+request.path, strings.NewReader("{}"))
				answer, err := client.Do(call)
				told = judged(answer, err, as.scheme, as.words)
			}
			if !strings.HasPrefix(told, "refused: ") {
				wrong++
			}
			fmt.Printf("%s %s with %s: %s\n", request.method, request.path, as.who, told)
		}
	}
	if wrong > 0 {
		os.Exit(1)
	}
}

// What became of a request, in a line: `refused: `, `HEARD: ` or `UNCLEAR: `.
func judged(answer *http.Response, err error, scheme string, words []string) string {
	if err != nil {
		for _, word := range words {
			if strings.Contains(err.Error(), word) {
				return "refused: " + err.Error()
			}
		}
		return "UNCLEAR: " + err.Error()
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusBadRequest && scheme == "http" {
		return "refused: " + answer.Status
	}
	body, _ := io.ReadAll(io.LimitReader(answer.Body, 200))
	return fmt.Sprintf("HEARD: %s %s", answer.Status, body)
}

// The name that the controller's certificate has, signed by nobody.
func made() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "penstock-operator"},
		DNSNames:     []string{"controller.penstock.dev"},
		NotAfter:     time.Now().Add(time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
