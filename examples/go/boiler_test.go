package boiler

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var url string

// TestMain runs the tests beside `orchmgmt test-server` (docs/testing.md).
func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "boiler")
	if err != nil {
		panic(err)
	}
	file := filepath.Join(folder, "ready.json")
	server := exec.Command("orchmgmt", "test-server", "--ready-file", file, "--recorder", "true")
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		panic(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	for url == "" {
		select {
		case err := <-ended:
			panic(fmt.Sprintf("the server has ended: %v", err))
		case <-time.After(20 * time.Millisecond):
		}
		var ready struct{ URL string }
		if text, err := os.ReadFile(file); err == nil && json.Unmarshal(text, &ready) == nil {
			url = ready.URL
		}
	}
	code := m.Run()
	server.Process.Signal(syscall.SIGTERM)
	<-ended
	os.RemoveAll(folder)
	os.Exit(code)
}

func control(t *testing.T, path, body string) string {
	t.Helper()
	response, err := http.Post(url+"/test/"+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer json.RawMessage
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || response.StatusCode != 200 {
		t.Fatalf("%s: %s %s", path, response.Status, answer)
	}
	return string(answer)
}

func take(t *testing.T, want bool) {
	t.Helper()
	err := Take(url, "BoilerControl", time.Now().Add(time.Hour))
	if (err == nil) != want {
		t.Fatalf("take: %v", err)
	}
}

func TestWaitsForTheLockOfAnother(t *testing.T) {
	control(t, "reset", "")
	control(t, "seed", `{"locks": [{"service_instance_id": "Boiler|heat|1.0.0", "expires_in": 60}]}`)
	take(t, false)
	control(t, "clock", `{"advance": 61}`)
	take(t, true)
}

func TestSurvives503(t *testing.T) {
	control(t, "reset", "")
	control(t, "faults", `{"next": {"status": 503, "times": 2, "operation": "lock.create"}}`)
	take(t, true)
	if answer := control(t, "faults", "{}"); answer != `{"unused": []}` {
		t.Fatal(answer)
	}
}

func TestSurvivesDroppedConnections(t *testing.T) {
	for _, drop := range []string{"before", "after", "middle"} {
		control(t, "reset", "")
		control(t, "faults", `{"next": {"drop": "`+drop+`", "operation": "lock.create"}}`)
		take(t, true)
		if got := holder(url); got != "BoilerControl" {
			t.Fatalf("after a drop %s: %q", drop, got)
		}
	}
}
