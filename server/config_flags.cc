#include "server/config_flags.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>

namespace denoised {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

std::function<void(const std::string&)> SetAddress(const std::string& name, ListenAddress* target) {
  return [=](const std::string& text) { *target = ParseAddress(name, text); };
}

// 0 in the file, whose field is a number, is auto.
std::function<void(const std::string&)> SetIntOrAuto(const std::string& name, int64_t max,
                                                     std::function<void(int64_t)> set) {
  return [=](const std::string& text) {
    if (text == "auto") return set(0);
    SetInt(name, 0, max, set)(text);
  };
}

std::function<void(const std::string&)> SetDrainGrace(Config* config) {
  return [config](const std::string& text) {
    config->drain_grace = ParseDuration("drain_grace", text);
    if (config->drain_grace > std::chrono::hours(24)) {
      throw UsageError("--drain_grace is at most 24h, got '" + text + "'");
    }
  };
}

std::function<void(const std::string&)> SetHttpTimeout(Config* config) {
  return [config](const std::string& text) {
    config->http_timeout = ParseDuration("http_timeout", text);
    if (config->http_timeout < std::chrono::milliseconds(100) ||
        config->http_timeout > std::chrono::hours(1)) {
      throw UsageError("--http_timeout is from 100ms to 1h, got '" + text + "'");
    }
  };
}

std::function<void(const std::string&)> SetHungAfter(EngineOptions* engine) {
  return [engine](const std::string& text) {
    const auto time = ParseDuration("hung_after", text);
    const bool off = time.count() == 0;
    if (!off && (time < std::chrono::seconds(1) || time > std::chrono::hours(24))) {
      throw UsageError("--hung_after is 0s (off) or from 1s to 24h, got '" + text + "'");
    }
    engine->hung_after = time;
  };
}

std::vector<Flag> WhereFlags(Config* config) {
  return {
      {"model_repository", "DIR", "model_repository",
       "Folder of model folders in diffusers layout (each with a model_index.json), one such "
       "folder, or a Hugging Face cache, whose models are called org/name. All are loaded at "
       "start; "
       "of those that could be, \"shapes\", else the first by name, is the default model. Unset: "
       "model_repository in the working folder, else the one installed with the program.",
       [config](const std::string& text) {
         if (text.empty()) throw UsageError("--model_repository is a folder, got ''");
         config->engine.model_repository = text;
         config->model_repository_given = true;
       }},
      {"listen", "HOST:PORT", "127.0.0.1:50051",
       "Public gRPC: generation, denoising steps, models, health, reflection. Port 0 takes a free "
       "one; the READY line names it.",
       SetAddress("listen", &config->listen)},
      {"admin_listen", "HOST:PORT", "127.0.0.1:50052",
       "Admin gRPC: forcing backends, explanations, draining. Never on the public port.",
       SetAddress("admin_listen", &config->admin_listen)},
      {"http_listen", "HOST:PORT", "127.0.0.1:8080", "HTTP: /metrics, /healthz and /readyz.",
       SetAddress("http_listen", &config->http_listen)},
      {"insecure_public", "", "false",
       "Allow addresses other than loopback although traffic is neither encrypted nor "
       "authenticated. Refused otherwise.",
       SetBool("insecure_public", &config->insecure_public)},
      {"strict_repository", "", "false",
       "End with an error where one model of the repository cannot be loaded. Otherwise the others "
       "serve, and ListModels, /readyz and denoised_model_load_failed name the one that does not.",
       SetBool("strict_repository", &config->engine.strict_repository)},
      {"variant", "NAME", "",
       "Which weight files to take where a folder has several: \"fp16\" for NAME.fp16.safetensors. "
       "Folders without it give their plain files. Unset: the plain ones, or the only variant.",
       SetWord("variant", &config->engine.variant)},
      {"state_dir", "DIR", "$XDG_STATE_HOME/denoised",
       "Folder for what outlives the process, made where it is missing: jobs, results, "
       "checkpoints, "
       "and the digests of weight files, so that a start need not read every byte to know them. "
       "One "
       "server at a time. Where XDG_STATE_HOME is unset, ~/.local/state/denoised. none: jobs and "
       "results are in memory and end with the process.",
       [config](const std::string& text) {
         if (text.empty()) throw UsageError("--state_dir is a folder or none, got ''");
         config->engine.state_dir = text == "none" ? "" : text;
         config->state_dir_given = true;
       }},
  };
}

Flag AutoErrorFlag(std::optional<double>* target) {
  return {
      "auto_error", "ERROR", "exact",
      "Which measured attention backends may be chosen automatically (`denoisectl tune`): exact "
      "(those that are automatic anyway), or also any that was measured at most so far from "
      "the reference, 0 to 1 (relative L2).",
      [target](const std::string& text) {
        if (text == "exact") return target->reset();
        SetDouble("auto_error", 0, 1, [target](double error) { *target = error; })(text);
      }};
}

std::vector<Flag> ComputeFlags(Config* config) {
  EngineOptions* engine = &config->engine;
  return {
      {"device", "DEVICE", "auto", "auto, cpu or cuda:N; auto takes cuda:0 where there is one.",
       SetDevice("device", &engine->device)},
      {"dtype", "DTYPE", "auto",
       "auto, float32 or bfloat16: of the transformer and the text encoder. auto is bfloat16 where "
       "the device multiplies it (CUDA; a CPU at the levels avx512_bf16 and amx), else float32, "
       "whatever the checkpoint's files hold.",
       SetChoice("dtype", {"auto", "float32", "bfloat16"}, &engine->dtype)},
      VaeDtypeFlag(&engine->vae_dtype),
      KeepTextEncoderFlag(&engine->keep_text_encoder),
      {"admit_unmeasured", "", "false",
       "Let attention kernels serve that compile but have not run on a device yet. Refused "
       "otherwise; "
       "`denoisectl backends` says which.",
       SetBool("admit_unmeasured", &engine->admit_unmeasured)},
      {"enable_drills", "", "false",
       "Let the admin port rehearse faults: `denoisectl drill` has a backend throw, stall or give "
       "NaN for a bounded time. Refused otherwise.",
       SetBool("enable_drills", &engine->enable_drills)},
      {"shadow_budget", "PERCENT", "2%",
       "The most that comparisons of backends (`denoisectl shadow`, budgets of forces) may add to "
       "the device's time, 0 to 50; 0 turns them off.",
       [engine](const std::string& text) {
         const std::string number = text.ends_with('%') ? text.substr(0, text.size() - 1) : text;
         SetDouble("shadow_budget", 0, 50,
                   [engine](double percent) { engine->shadow_budget = percent / 100; })(number);
       }},
      {"threads", "N", "0", "CPU threads of one operation, 0 to 1024; 0 = one a physical core.",
       SetInt("threads", 0, 1024, [engine](int64_t n) { engine->threads = static_cast<int>(n); })},
      CpuIsaFlag(&config->cpu_isa),
      LinearFlag(&engine->linear),
      AutoErrorFlag(&engine->auto_error),
      {"tune_when_idle", "", "false",
       "Measure attention backends for the calls that jobs make, where there is nothing else to "
       "do. "
       "Otherwise `denoisectl tune` alone measures: what is measured decides which backend later "
       "jobs get, and so their bits.",
       SetBool("tune_when_idle", &engine->tune_when_idle)},
  };
}

std::vector<Flag> OrderFlags(Config* config) {
  EngineOptions* engine = &config->engine;
  return {
      {"policy", "POLICY", "deadline",
       "Whose step is next: deadline (by deadlines, priorities and fair shares of the tenants; "
       "what "
       "is more urgent overtakes at the next step) or fifo (in the order of arrival, to the end).",
       [engine](const std::string& text) {
         std::string name;
         SetChoice("policy", {"deadline", "fifo"}, &name)(text);
         engine->policy =
             name == "fifo" ? EngineOptions::Policy::kFifo : EngineOptions::Policy::kDeadline;
       }},
      {"batching", "ON", "on",
       "on or off: whether jobs and calls of one model and shape share the forwards of their "
       "steps. "
       "On a CPU no result depends on it.",
       [engine](const std::string& text) {
         std::string name;
         SetChoice("batching", {"on", "off"}, &name)(text);
         engine->batching = name == "on";
       }},
      {"max_batch_rows", "N", "16",
       "Rows of one forward, 1 to 256; a job with guidance has two. As many share it as pay.",
       SetInt("max_batch_rows", 1, 256, [engine](int64_t n) { engine->max_batch_rows = n; })},
      {"max_running_jobs", "N", "auto",
       "Jobs that have begun and not ended, 1 to 100000; auto (or 0) = as many as memory holds.",
       SetIntOrAuto("max_running_jobs", 100000,
                    [engine](int64_t n) { engine->max_running_jobs = n; })},
      {"max_resident_mib", "N", "auto",
       "MiB that jobs may keep in memory between their steps, 1 to 1048576; beyond it those whose "
       "turn is furthest away go into their checkpoints in the state folder, and on from there "
       "with the same bits. auto (or 0) = all that memory holds. With --state_dir=none nothing is "
       "moved.",
       SetIntOrAuto("max_resident_mib", 1 << 20,
                    [engine](int64_t n) { engine->max_resident_bytes = n * kMiB; })},
      {"hung_after", "TIME", "60s",
       "A prompt, step or chunk of frames hangs once it takes ten times as long as it should, and "
       "so long at least (30 times that where its like never ran): the server is not ready "
       "(HUNG), and the log tells where every thread stands. So long again, and the process ends "
       "with code 71, for its supervisor to start it anew. 0s = never, else 1s to 24h.",
       SetHungAfter(engine)},
      {"checkpoint_every", "N", "auto",
       "auto, off or a number of steps: how often a running job's state is kept in the state "
       "folder. auto is as often as costs next to nothing.",
       [engine](const std::string& text) {
         if (text == "auto" || text == "off") {
           engine->checkpoint_every = text == "auto" ? -1 : 0;
         } else {
           SetInt("checkpoint_every", 1, 10000,
                  [engine](int64_t n) { engine->checkpoint_every = n; })(text);
         }
       }},
  };
}

std::vector<Flag> LimitFlags(Config* config) {
  EngineOptions* engine = &config->engine;
  return {
      {"max_queued_jobs", "N", "64",
       "Jobs that may wait, 1 to 100000; further ones get RESOURCE_EXHAUSTED. Suspended ones are "
       "not "
       "among them; of those there may be as many.",
       SetInt("max_queued_jobs", 1, 100000, [engine](int64_t n) { engine->max_queued_jobs = n; })},
      {"max_queued_denoise_calls", "N", "256",
       "Denoise calls that may wait, 1 to 100000; further ones get RESOURCE_EXHAUSTED.",
       SetInt("max_queued_denoise_calls", 1, 100000,
              [engine](int64_t n) { engine->max_queued_denoise_calls = n; })},
      {"max_sessions", "N", "256",
       "Sessions that may be open, forks among them, 1 to 100000; further ones get "
       "RESOURCE_EXHAUSTED.",
       SetInt("max_sessions", 1, 100000, [engine](int64_t n) { engine->max_sessions = n; })},
      {"session_idle", "TIME", "10m",
       "After which time without a request a stream's sessions end (10s, 10m; 0s = never).",
       [engine](const std::string& text) {
         engine->session_idle = ParseDuration("session_idle", text);
       }},
      {"max_finished_jobs", "N", "auto",
       "Ended jobs to remember, with their idempotency keys, 1 to 1000000: so many that made "
       "results "
       "and so many that made none. The oldest are forgotten first, except while somebody watches "
       "or reads them. auto (or 0) = 256 with --state_dir=none; with a state folder all that ended "
       "within --keep_results, as far as 128 MiB of memory (or a 64th of --max_memory) hold them: "
       "some 11500 that made results, and as many that made none.",
       SetIntOrAuto("max_finished_jobs", 1000000,
                    [engine](int64_t n) { engine->max_finished_jobs = n; })},
      {"max_artifact_mib", "N", "1024",
       "MiB of results to keep, 1 to 1048576: on disk, or in memory with --state_dir=none. Beyond "
       "it "
       "the oldest results go; on disk their jobs and keys stay, in memory they go too.",
       SetInt("max_artifact_mib", 1, 1 << 20,
              [engine](int64_t n) { engine->max_artifact_bytes = n * kMiB; })},
      {"keep_results", "TIME", "7d",
       "How long after its end a job in the state folder is remembered, with its idempotency key "
       "and, within --max_artifact_mib, its results (1s to ten years).",
       [engine](const std::string& text) {
         const auto time = ParseDuration("keep_results", text);
         if (time < std::chrono::seconds(1)) {
           throw UsageError("--keep_results is 1s or longer, got '" + text + "'");
         }
         engine->keep_results = std::chrono::duration_cast<std::chrono::seconds>(time);
       }},
      MaxMemoryFlag(&engine->max_memory),
      {"max_message_mib", "N", "64",
       "MiB of one request message, 1 to 1024; a larger one gets RESOURCE_EXHAUSTED.",
       SetInt("max_message_mib", 1, 1024,
              [config](int64_t n) { config->max_message_bytes = n * kMiB; })},
      {"drain_grace", "TIME", "30s",
       "After SIGTERM: how long running work and open streams may go on (500ms, 30s, 5m; at most "
       "24h). Then jobs are kept as checkpoints for the next start. With --state_dir=none waiting "
       "jobs run too, results that nobody fetched are kept for 5 s after their job's end, and what "
       "is left is cancelled. A second signal ends the process at once; the next start goes on "
       "from the last checkpoints then.",
       SetDrainGrace(config)},
  };
}

std::vector<Flag> ConnectionFlags(Config* config) {
  return {
      {"max_connections", "N", "1024",
       "Connections to the public gRPC port, 4 to 1000000; further ones are closed at once. "
       "Lowered where the process may not open so many files.",
       SetInt("max_connections", 4, 1000000, [config](int64_t n) { config->max_connections = n; })},
      {"max_http_connections", "N", "256",
       "Connections to the HTTP port, 8 to 1000000; a further one takes the place of the one that "
       "has been idle longest, else of the one whose request has dragged longest.",
       SetInt("max_http_connections", 8, 1000000,
              [config](int64_t n) { config->max_http_connections = n; })},
      {"max_streams_per_connection", "N", "1024",
       "Calls that one connection to a gRPC port may have open, 8 to 100000. Streams and "
       "denoising steps get seven eighths of them, further ones RESOURCE_EXHAUSTED, so that other "
       "calls are never held up by them.",
       SetInt("max_streams_per_connection", 8, 100000,
              [config](int64_t n) { config->max_streams_per_connection = n; })},
      {"http_timeout", "TIME", "10s",
       "From the first byte of an HTTP request to the last of its answer (100ms to 1h).",
       SetHttpTimeout(config)},
  };
}

}  // namespace

std::vector<Flag> FileFlags(Config* config) {
  std::vector<Flag> flags = WhereFlags(config);
  for (auto part :
       {ComputeFlags(config), OrderFlags(config), LimitFlags(config), ConnectionFlags(config)}) {
    flags.insert(flags.end(), part.begin(), part.end());
  }
  flags.push_back({"log_level", "LEVEL", "info",
                   "debug, info, warning or error. Logs are JSON lines on stderr.",
                   [config](const std::string& text) {
                     const auto level = LogLevelFromName(text);
                     if (!level) {
                       throw UsageError("--log_level is one of debug, info, warning, error, got '" +
                                        text + "'");
                     }
                     config->log_level = *level;
                   }});
  return flags;
}

std::vector<Flag> AllFlags(Config* config, std::string* config_path) {
  std::vector<Flag> flags = FileFlags(config);
  flags.insert(flags.begin(), {"config", "FILE", "",
                               "File in protobuf's text format with the flags below as its fields "
                               "(proto/denoised/v1/config.proto). Flags win over it.",
                               SetString(config_path)});
  flags.push_back({"help", "", "", "Show this text.", SetBool("help", &config->show_help), "h"});
  flags.push_back(
      {"version", "", "", "Show the version.", SetBool("version", &config->show_version)});
  return flags;
}

}  // namespace denoised
