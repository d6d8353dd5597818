// The application in the pods of tests/mesh: a server, and a client that sends at a steady rate.
//
//	traffic serve ADDRESS            answers every request
//	traffic send RATE URL...         sends RATE requests a second to each URL, each over a new connection
//
// The client writes its counts to standard output as a line of JSON twice a second, and once more when it ends by SIGTERM,
// after the last reply; and each failure to standard error, with its time.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2], stop)
	case len(os.Args) > 3 && os.Args[1] == "send":
		err = send(os.Args[2], os.Args[3:], stop)
	default:
		err = fmt.Errorf("usage: traffic serve ADDRESS | send RATE URL...")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		os.Exit(1)
	}
}

func serve(address string, stop <-chan os.Signal) error {
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	server := &http.Server{Addr: address, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() {
		<-stop
		// Replies under way are finished.
		ended <- server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return <-ended
}

// counts is what became of the requests; causes counts the first twenty kinds of failure. Slowest is the longest time of a
// request, and Pause the longest time that the client itself was late, both in milliseconds: if Pause is long, the machine
// was too busy to run this program, and the others on it.
type counts struct {
	Sent   uint64            `json:"sent"`
	OK     uint64            `json:"ok"`
	Failed uint64            `json:"failed"`
	Causes map[string]uint64 `json:"causes"`

	Slowest int64 `json:"slowest"`
	Pause   int64 `json:"pause"`
}

func send(rate string, urls []string, stop <-chan os.Signal) error {
	perSecond, err := strconv.Atoi(rate)
	if err != nil || perSecond < 1 {
		return fmt.Errorf("%q is not a rate", rate)
	}
	client := &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true},
	}
	var lock sync.Mutex
	var wait sync.WaitGroup
	total := counts{Causes: map[string]uint64{}}
	one := func(url string) {
		defer wait.Done()
		started := time.Now()
		cause := get(client, url)
		took := time.Since(started)
		lock.Lock()
		defer lock.Unlock()
		total.Slowest = max(total.Slowest, took.Milliseconds())
		if cause == "" {
			total.OK++
			return
		}
		total.Failed++
		fmt.Fprintf(os.Stderr, "failed: %s after %d ms: %s\n", started.UTC().Format(time.RFC3339Nano), took.Milliseconds(), cause)
		if _, known := total.Causes[cause]; known || len(total.Causes) < 20 {
			total.Causes[cause]++
		}
	}
	report := func() error {
		lock.Lock()
		defer lock.Unlock()
		return json.NewEncoder(os.Stdout).Encode(total)
	}
	period := time.Second / time.Duration(perSecond)
	next, reports, last := time.NewTicker(period), time.NewTicker(time.Second/2), time.Now()
	for {
		select {
		case <-next.C:
			late := time.Since(last) - period
			last = time.Now()
			lock.Lock()
			total.Pause = max(total.Pause, late.Milliseconds())
			total.Sent += uint64(len(urls))
			lock.Unlock()
			wait.Add(len(urls))
			for _, url := range urls {
				go one(url)
			}
		case <-reports.C:
			if err := report(); err != nil {
				return err
			}
		case <-stop:
			wait.Wait()
			return report()
		}
	}
}

// get gives why a request failed, or nothing.
func get(client *http.Client, url string) string {
	reply, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = reply.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(reply.Body, 500))
	if err != nil {
		return err.Error()
	}
	if reply.StatusCode != http.StatusOK {
		return fmt.Sprintf("%s: %s", reply.Status, body)
	}
	return ""
}
