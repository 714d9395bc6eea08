package boiler

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"
)

var instances = []string{"BoilerA|heat|1.0.0", "BoilerB|heat|1.0.0"}

func orchestrate(t *testing.T, requester string) (Job, error) {
	t.Helper()
	return Orchestrator{url}.Orchestrate(requester, "heat", instances, time.Now().Add(time.Hour))
}

func query(t *testing.T, path string, filter, found any) {
	t.Helper()
	_, text, err := post(url+mgmt+path, filter)
	if err == nil {
		err = json.Unmarshal(text, found)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func history(t *testing.T, job Job) (entry struct{ Status, Message, StartedAt, FinishedAt string }) {
	t.Helper()
	found := struct{ Entries []any }{[]any{&entry}}
	query(t, "/history/query", map[string]any{"ids": []string{job.ID}}, &found)
	return entry
}

func reserved(t *testing.T) map[string]string {
	t.Helper()
	var found struct{ Entries []Reservation }
	query(t, "/lock/query", nil, &found)
	owners := map[string]string{}
	for _, lock := range found.Entries {
		owners[lock.ServiceInstanceID] = lock.Owner
	}
	return owners
}

func TestAJobReservesEndsAndGivesBack(t *testing.T) {
	control(t, "reset", "")
	job, err := orchestrate(t, "RoomClimate")
	if err != nil {
		t.Fatal(err)
	}
	kept := history(t, job)
	if kept.Status != "DONE" || kept.Message != instances[0] || kept.StartedAt == "" || kept.FinishedAt == "" {
		t.Fatalf("%+v", kept)
	}
	if owners := reserved(t); len(owners) != 1 || owners[instances[0]] != "RoomClimate" {
		t.Fatal(owners)
	}
	if err := (Orchestrator{url}).Release(job); err != nil {
		t.Fatal(err)
	}
	if owners := reserved(t); len(owners) != 0 {
		t.Fatal(owners)
	}
}

func TestAsManyGetOneAsThereAre(t *testing.T) {
	control(t, "reset", "")
	var wait sync.WaitGroup
	jobs, errs := make([]Job, 6), make([]error, 6)
	for i := range jobs {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			jobs[i], errs[i] = orchestrate(t, "RoomClimate")
		}(i)
	}
	wait.Wait()
	got := map[string]int{}
	for i, job := range jobs {
		kept := history(t, job)
		if (errs[i] == nil) != (kept.Status == "DONE") {
			t.Fatalf("%v: %+v", errs[i], kept)
		}
		got[kept.Message]++
	}
	if got[instances[0]] != 1 || got[instances[1]] != 1 || got["No instance is free"] != 4 {
		t.Fatal(got)
	}
}

func TestTheOrchestratorSurvives503AndDroppedConnections(t *testing.T) {
	for _, operation := range []string{"history.record", "lock.reserve"} {
		for _, fault := range []string{`"status": 503, "times": 2`, `"drop": "before"`, `"drop": "after"`} {
			control(t, "reset", "")
			control(t, "faults", `{"next": {`+fault+`, "operation": "`+operation+`"}}`)
			job, err := orchestrate(t, "RoomClimate")
			if err != nil {
				t.Fatal(operation, fault, err)
			}
			if kept := history(t, job); kept.Status != "DONE" || kept.Message != instances[0] {
				t.Fatalf("%s %s: %+v", operation, fault, kept)
			}
			if answer := control(t, "faults", "{}"); answer != `{"unused": []}` {
				t.Fatal(answer)
			}
		}
	}
}

func TestAnEndedJobReservesNothing(t *testing.T) {
	control(t, "reset", "")
	job, err := orchestrate(t, "RoomClimate")
	if err != nil {
		t.Fatal(err)
	}
	late := Reservation{job.ID, Lock{instances[1], "RoomClimate", time.Now().Add(time.Hour)}}
	free, err := (Orchestrator{url}).reserve(late)
	if free || err == nil || !strings.Contains(err.Error(), "There is no unfinished orchestration job") {
		t.Fatal(free, err)
	}
}
