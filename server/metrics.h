// Prometheus: with metrics_series and metrics_text the only files that know it. Turns what the
// engine reports, and each finished call, into the series named in the contract. Labels come from
// closed sets only; no ids, prompts or peers.
#ifndef DENOISED_SERVER_METRICS_H_
#define DENOISED_SERVER_METRICS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/observer.h"

namespace denoised {

// Owned by the Server; outlives the engine. Any thread. Observing costs a short lock and a look-up
// by hash, however many series there are.
class Metrics : public Observer {
 public:
  // What is read at the moment of a scrape instead of being counted.
  struct Gauges {
    int64_t queue_depth = 0, jobs_running = 0, sessions = 0;
    // Live forces, by backend and the kinds of their scopes (KindsText).
    std::map<std::pair<AttnBackend, std::string>, int> leases;
    // Models and backends with a circuit breaker that is not closed.
    std::set<std::pair<std::string, AttnBackend>> breakers;
    uint64_t log_lines_dropped = 0;  // since the start
    struct Connections {
      int64_t open = 0;
      int64_t refused = 0;  // since the start; closed at once, or to make room
    };
    std::map<std::string, Connections> connections;  // by listener: "public", "admin", "http"
    bool hung = false;                               // a unit of the engine is
    double memory_pressure = 0;
    // Since the start, by what was sent away: "work", "watchers", "connections".
    std::map<std::string, int64_t> memory_shed;
  };

  explicit Metrics(const std::string& version);
  ~Metrics() override;

  void OnForward(const std::string& model, AttnBackend self_attention, Branch branch,
                 int64_t batch_size, int64_t batch_tokens, double seconds) override;
  void OnStep(const std::string& model, double seconds) override;
  void OnStage(const std::string& model, JobStage stage, double seconds) override;
  void OnPrompt(const std::string& model, bool cached, int64_t cache_bytes) override;
  void OnAttention(AttnBackend backend, AttentionRole role, uint64_t calls,
                   std::optional<double> seconds) override;
  void OnFallback(AttnBackend from, AttnBackend to, SelectionSource source) override;
  void OnBackendSwitch(SelectionSource cause) override;
  void OnRollback(AttnBackend backend, std::string_view cause) override;
  void OnShadow(AttnBackend baseline, AttnBackend candidate, AttentionRole role,
                std::string_view sigma_band, double relative_l2) override;
  void OnShadowSeconds(double seconds) override;
  void OnJobStarted(const std::string& model, Priority priority,
                    double queue_wait_seconds) override;
  void OnCheckpoint(const std::string& model, double seconds) override;
  void OnPreemption(const std::string& model) override;
  void OnPutAway(const std::string& model, double seconds) override;
  void OnJobResumed(const std::string& model, bool from_checkpoint) override;
  void OnJobFinished(const std::string& model, JobState outcome) override;
  void OnModelLoaded(const std::string& model, double seconds) override;
  void OnModelFailed(const std::string& model, const std::string& reason) override;
  void OnModelFailureGone(const std::string& model) override { ForgetFailures(model); }
  void OnModelUnloaded(const std::string& model) override;

  // A finished call: `method` as in the .proto, `code` as in "NOT_FOUND".
  void OnRpc(std::string_view method, std::string_view code, double seconds);

  // Called as each page begins, from the HTTP thread. Empty: the gauges stay 0.
  void SetGaugeSource(std::function<Gauges()> source);

  // A page in Prometheus' text format 0.0.4, of the gauges as they are now. Each call appends the
  // next 32 KiB or so of it; false: that was the last. Outlived by these metrics.
  std::function<bool(std::string*)> Page();

 private:
  struct Families;

  // Counters whose labels are known begin at 0 and not as absent: alerts and rates need the first
  // point.
  void StartCounters();
  void StartFallbacks(AttnBackend from);
  void ForgetFailures(const std::string& model, const std::string& but = "");
  void ReadGauges();

  const std::unique_ptr<Families> families_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_METRICS_H_
