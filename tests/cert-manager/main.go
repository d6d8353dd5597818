// cert-manager's own controllers and webhook, without those that a test of an external issuer does not need.
//
//	cert-manager controllers KUBECONFIG
//	cert-manager webhook KUBECONFIG PORT CERTIFICATE KEY
//
// The programs of cert-manager are Go modules of their own, which have no release that the Go proxy serves; the code
// that they call is in its main module. This module's path lets it import the internal packages, as theirs does.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	webhookconfig "github.com/cert-manager/cert-manager/internal/apis/config/webhook"
	"github.com/cert-manager/cert-manager/internal/webhook"
	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cert-manager:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	switch {
	case len(arguments) == 2 && arguments[0] == "controllers":
		return controllers(ctx, arguments[1])
	case len(arguments) == 5 && arguments[0] == "webhook":
		return serve(ctx, arguments[1:])
	}
	return fmt.Errorf("give controllers KUBECONFIG, or webhook KUBECONFIG PORT CERTIFICATE KEY")
}

func controllers(ctx context.Context, kubeconfig string) error {
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         kubeconfig,
		KubernetesAPIQPS:   50,
		KubernetesAPIBurst: 100,
		CertificateOptions: controller.CertificateOptions{
			// The defaults of the program.
			CopiedAnnotationPrefixes:                 []string{"*", "-kubectl.kubernetes.io/", "-fluxcd.io/", "-argocd.argoproj.io/"},
			CertificateRequestMinimumBackoffDuration: time.Hour,
			CertificateRequestMaximumBackoffDuration: 32 * time.Hour,
		},
	})
	if err != nil {
		return err
	}
	shared, err := factory.Build()
	if err != nil {
		return err
	}
	ended := make(chan error)
	for _, name := range []string{
		approver.ControllerName, issuing.ControllerName, keymanager.ControllerName, readiness.ControllerName,
		requestmanager.ControllerName, revisionmanager.ControllerName, trigger.ControllerName,
	} {
		made, err := controller.Known()[name](factory)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		go func() { ended <- made.Run(2, ctx) }()
	}
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	return <-ended
}

func serve(ctx context.Context, arguments []string) error {
	port, err := strconv.ParseInt(arguments[1], 10, 32)
	if err != nil {
		return err
	}
	config := webhookconfig.WebhookConfiguration{
		KubeConfig:           arguments[0],
		SecurePort:           int32(port),
		MetricsListenAddress: "0",
	}
	config.TLSConfig.Filesystem.CertFile, config.TLSConfig.Filesystem.KeyFile = arguments[2], arguments[3]
	server, err := webhook.NewCertManagerWebhookServer(logf.Log, config)
	if err != nil {
		return err
	}
	// Another process of this test may have the port of the health checks.
	server.HealthzAddr = nil
	return server.Run(ctx)
}
