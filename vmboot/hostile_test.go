package vmboot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/microsandbox/msb-fs/vmboot/agentproto"
)

// meet is all that is said before the session.
func meet(conn net.Conn) (*yamux.Session, error) {
	if err := hear(conn); err != nil {
		return nil, err
	}
	return greet(conn, &agentproto.Setup{})
}

// frame is one frame of the agent's, as bytes.
func frame(t testing.TB, v agentproto.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := agentproto.WriteFrame(&b, v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestGreetDistrustsTheGuest(t *testing.T) {
	good := agentproto.Hello{Magic: agentproto.Magic, Version: agentproto.Version}
	for name, c := range map[string]struct {
		sent []byte
		want string
	}{
		"nothing":       {nil, "ended before its agent was up"},
		"giant frame":   {[]byte{0xff, 0xff, 0xff, 0xff}, "at most"},
		"cut frame":     {[]byte{0, 0, 1, 0, 'x'}, "unexpected EOF"},
		"no message":    {[]byte{0, 0, 0, 1, 'x'}, "ends within a field"},
		"other program": {frame(t, &agentproto.Hello{Magic: strings.Repeat("\x1b[31m", 50), Version: 1}), "another protocol"},
		"other version": {frame(t, &agentproto.Hello{Magic: agentproto.Magic, Version: 99}), "version 99"},
	} {
		host, guest := net.Pipe()
		go func() {
			guest.Write(c.sent)
			guest.Close()
		}()
		_, err := meet(host)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("%s: %v", name, err)
		}
		host.Close()
	}
	host, guest := net.Pipe()
	go func() {
		guest.Write(frame(t, &good))
		io.Copy(io.Discard, guest)
	}()
	session, err := meet(host)
	if err != nil {
		t.Fatal(err)
	}
	session.Close()
	guest.Close()
}

// hostileAgent answers one process's Control stream with what it is given and then closes it.
func hostileAgent(t *testing.T, reply []byte) *Agent {
	t.Helper()
	host, guest := net.Pipe()
	client, err := yamux.Client(host, agentproto.SessionConfig())
	if err != nil {
		t.Fatal(err)
	}
	server, err := yamux.Server(guest, agentproto.SessionConfig())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			stream, err := server.AcceptStream()
			if err != nil {
				return
			}
			h, err := agentproto.ReadHeader(stream)
			if err != nil {
				continue
			}
			if h.Kind == agentproto.Control {
				var r agentproto.Request
				agentproto.ReadFrame(stream, agentproto.MaxRequest, &r)
				stream.Write(reply)
			}
			stream.Close()
		}
	}()
	t.Cleanup(func() {
		client.Close()
		server.Close()
		<-done
	})
	return NewAgent(func(context.Context) (net.Conn, error) { return client.OpenStream() })
}

func TestExecDistrustsTheGuest(t *testing.T) {
	exit := func(e agentproto.Exit) []byte { return frame(t, &agentproto.Reply{Exit: &e}) }
	for name, c := range map[string]struct {
		reply  []byte
		code   int
		signal int
		want   string // of the error
	}{
		"honest":          {append(frame(t, &agentproto.Reply{Started: 3}), exit(agentproto.Exit{Code: 7})...), 7, 0, ""},
		"nothing":         {nil, 0, 0, "ended before the program did"},
		"giant":           {[]byte{0x7f, 0, 0, 0}, 0, 0, "at most"},
		"no status":       {exit(agentproto.Exit{Code: -1}), 255, 0, ""},
		"status too big":  {exit(agentproto.Exit{Code: 1 << 20}), 0, 0, ""},
		"signal too big":  {exit(agentproto.Exit{Code: 137, Signal: 9 + 128}), 137, 9, ""},
		"escape sequence": {exit(agentproto.Exit{Code: 0, Error: "\x1b]0;owned\x07"}), 126, 0, "]0;owned"},
		"empty replies":   {append(bytes.Repeat(frame(t, &agentproto.Reply{}), 1000), exit(agentproto.Exit{})...), 0, 0, ""},
		"started often":   {append(bytes.Repeat(frame(t, &agentproto.Reply{Started: 1}), 1000), exit(agentproto.Exit{})...), 0, 0, ""},
	} {
		started := 0
		s, err := hostileAgent(t, c.reply).Exec(t.Context(), Process{Args: []string{"x"}, Stdin: strings.NewReader("in"), Started: func() { started++ }})
		if (err == nil) != (c.want == "") || (err != nil && (!strings.Contains(err.Error(), c.want) || strings.ContainsRune(err.Error(), '\x1b'))) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
		if s.Code != c.code || int(s.Signal) != c.signal || started > 1 {
			t.Errorf("%s: %+v, started %d times", name, s, started)
		}
	}
}

// An agent that reports the end but never ends the outputs, or never answers, cannot hold the host for ever.
func TestExecEndsWithItsContext(t *testing.T) {
	host, guest := net.Pipe()
	client, err := yamux.Client(host, agentproto.SessionConfig())
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, guest) // takes everything, says nothing
	defer guest.Close()
	defer client.Close()
	a := NewAgent(func(context.Context) (net.Conn, error) { return client.OpenStream() })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := a.Exec(ctx, Process{Args: []string{"x"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func FuzzReply(f *testing.F) {
	f.Add(frame(f, &agentproto.Reply{Exit: &agentproto.Exit{Code: 1}}))
	f.Add([]byte{0, 0, 0, 2, 6, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		e := &execution{control: readConn{Reader: bytes.NewReader(data)}}
		exit, err := e.await(func() {})
		if (exit == nil) == (err == nil) {
			t.Fatalf("%v, %v", exit, err)
		}
		if exit != nil {
			if s, _ := status(exit, t.Context()); s.Code < 0 || s.Code > 255 || s.Signal < 0 || s.Signal > 127 {
				t.Fatalf("%+v", s)
			}
		}
	})
}

func FuzzSession(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 4, 'x'})
	f.Fuzz(func(t *testing.T, data []byte) {
		host, guest := net.Pipe()
		client, err := yamux.Client(agentproto.Coalesce(host), agentproto.SessionConfig())
		if err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, guest)
		if stream, err := client.OpenStream(); err == nil {
			go io.Copy(io.Discard, stream)
		}
		guest.SetWriteDeadline(time.Now().Add(time.Second))
		guest.Write(data)
		guest.Close()
		client.Close()
	})
}

// readConn is a connection of which only the reading counts.
type readConn struct {
	net.Conn
	io.Reader
}

func (c readConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }
