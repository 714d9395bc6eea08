package boiler

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Job is an orchestration as history record takes it: what is empty stays as it is there.
type Job struct {
	ID                string `json:"id"`
	Status            string `json:"status,omitempty"`
	Type              string `json:"type,omitempty"`
	RequesterSystem   string `json:"requesterSystem,omitempty"`
	TargetSystem      string `json:"targetSystem,omitempty"`
	ServiceDefinition string `json:"serviceDefinition,omitempty"`
	Message           string `json:"message,omitempty"`
}

// Reservation is a temporary lock of a job.
type Reservation struct {
	JobID string `json:"orchestrationJobId"`
	Lock
}

// Orchestrator finds free providers. It keeps nothing itself: its jobs and its reservations are at
// the service with this URL, whose recorder is switched on (docs/recorder.md).
type Orchestrator struct {
	URL string
}

// Orchestrate reserves the first free one of the instances for the requester. It returns the job,
// whose end gives nothing back: Release does, or time.
func (o Orchestrator) Orchestrate(requester, service string, instances []string, until time.Time) (Job, error) {
	job := Job{newID(), "IN_PROGRESS", "PULL", requester, requester, service, ""}
	if err := o.record(job); err != nil {
		return job, err
	}
	job.Status, job.Message = "ERROR", "No instance is free"
	for _, instance := range instances {
		free, err := o.reserve(Reservation{job.ID, Lock{instance, requester, until}})
		if err != nil {
			job.Message = err.Error()
			break
		}
		if free {
			job.Status, job.Message = "DONE", instance
			break
		}
	}
	if err := o.record(job); err != nil {
		return job, err
	}
	if job.Status == "ERROR" {
		return job, fmt.Errorf("%s", job.Message)
	}
	return job, nil
}

// Release gives back what a job has reserved.
func (o Orchestrator) Release(job Job) error {
	return o.expect(http.StatusOK, "DELETE", "/lock/release/"+job.ID, nil)
}

// record may be repeated: a job has an id of our own, and a step that it has taken changes nothing.
func (o Orchestrator) record(job Job) error {
	return o.expect(http.StatusCreated, "POST", "/history/record", map[string]any{"jobs": []Job{job}})
}

// reserve tells whether an instance is ours from now on.
func (o Orchestrator) reserve(wanted Reservation) (bool, error) {
	payload := map[string]any{"locks": []Reservation{wanted}}
	err := o.expect(http.StatusCreated, "POST", "/lock/reserve", payload)
	if err == nil {
		return true, nil
	}
	if !strings.Contains(err.Error(), "Already locked") {
		return false, err
	}
	// It may be by an earlier try of our own, whose answer was lost.
	filter := map[string]any{
		"orchestrationJobIds": []string{wanted.JobID},
		"serviceInstanceIds":  []string{wanted.ServiceInstanceID},
	}
	_, text, err := o.send("POST", "/lock/query", filter)
	var found struct{ Count int }
	if err == nil {
		err = json.Unmarshal(text, &found)
	}
	return found.Count > 0, err
}

func (o Orchestrator) expect(wanted int, method, path string, payload any) error {
	status, text, err := o.send(method, path, payload)
	if err == nil && status != wanted {
		err = fmt.Errorf("%s", text)
	}
	return err
}

// send tries again after a 503 or a lost answer.
func (o Orchestrator) send(method, path string, payload any) (status int, text []byte, err error) {
	for try := 0; try < 4; try++ {
		status, text, err = send(method, o.URL+mgmt+path, payload)
		if err == nil && status != http.StatusServiceUnavailable {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return status, text, err
}

// newID returns a random UUID.
func newID() string {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		panic(err)
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
