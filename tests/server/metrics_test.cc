// The metrics page: names, labels, lint, and that it can be scraped.
#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <thread>

namespace denoised {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

void ReportEverything(Metrics* metrics) {
  metrics->OnForward("m", AttnBackend::kTorchSdpa, Branch::kConditional, 2, 128, 0.02);
  metrics->OnStep("m", 0.04);
  metrics->OnStage("m", JobStage::kDecode, 1.5);
  metrics->OnPrompt("m", false, 1 << 20);
  metrics->OnPrompt("m", true, 3 << 20);
  metrics->OnPrompt("m", true, 2 << 20);
  metrics->OnAttention(AttnBackend::kFlashAttn, AttentionRole::kCross, 30, 0.01);
  metrics->OnFallback(AttnBackend::kSageAttn, AttnBackend::kTorchSdpa, SelectionSource::kRequest);
  metrics->OnBackendSwitch(SelectionSource::kForce);
  metrics->OnRollback(AttnBackend::kSageAttn, "not_finite");
  metrics->OnShadow(AttnBackend::kReference, AttnBackend::kSageAttn, AttentionRole::kSelf,
                    "0.2-0.4", 0.03);
  metrics->OnShadow(AttnBackend::kReference, AttnBackend::kSageAttn, AttentionRole::kSelf,
                    "0.2-0.4", std::numeric_limits<double>::infinity());
  metrics->OnShadowSeconds(0.25);
  metrics->OnJobStarted("m", Priority::kNormal, 3);
  metrics->OnJobFinished("m", JobState::kSucceeded);
  metrics->OnModelLoaded("m", 12);
  metrics->OnModelFailed("bad\"name", "LFS_POINTER");
  metrics->OnRpc("GetJob", "NOT_FOUND", 0.001);
}

std::string PageOf(Metrics* metrics) {
  const auto page = metrics->Page();
  std::string text;
  while (page(&text)) {
  }
  return text;
}

// Every line that is not a comment, without its value.
std::vector<std::string> SeriesOf(const std::string& page) {
  std::vector<std::string> series;
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line[0] != '#') series.push_back(line.substr(0, line.rfind(' ')));
  }
  return series;
}

TEST(MetricsTest, EachReportMovesItsSeries) {
  Metrics metrics("1.2.3");
  ReportEverything(&metrics);
  const std::string page = PageOf(&metrics);
  for (const char* line :
       {"denoised_forward_seconds_count{backend=\"TORCH_SDPA\",branch=\"cond\",model=\"m\"} 1",
        "denoised_forward_seconds_bucket{backend=\"TORCH_SDPA\",branch=\"cond\",model=\"m\","
        "le=\"0.025\"} 1",
        "denoised_forward_batch_size_sum{model=\"m\"} 2",
        "denoised_forward_batch_tokens_sum{model=\"m\"} 128",
        "denoised_step_seconds_count{model=\"m\"} 1",
        "denoised_stage_seconds_count{model=\"m\",stage=\"decode\"} 1",
        "denoised_prompt_cache_hits_total{model=\"m\"} 2",
        "denoised_prompt_cache_misses_total{model=\"m\"} 1",
        "denoised_prompt_cache_bytes{model=\"m\"} 2097152",
        "denoised_attention_seconds_count{backend=\"FLASH_ATTN\",role=\"cross\"} 1",
        "denoised_attention_calls_total{backend=\"FLASH_ATTN\",role=\"cross\"} 30",
        "denoised_attention_fallback_total{from=\"SAGE_ATTN\",reason=\"request\",to=\"TORCH_SDPA\"}"
        " "
        "1",
        "denoised_model_load_failed{model=\"bad\\\"name\",reason=\"LFS_POINTER\"} 1",
        "denoised_models_failed 1",
        "denoised_backend_switch_total{cause=\"force\"} 1",
        "denoised_rollback_total{backend=\"SAGE_ATTN\",cause=\"not_finite\"} 1",
        "denoised_shadow_relative_l2_bucket{baseline=\"REFERENCE\",candidate=\"SAGE_ATTN\","
        "role=\"self\",sigma_band=\"0.2-0.4\",le=\"0.02\"} 0",
        "denoised_shadow_relative_l2_bucket{baseline=\"REFERENCE\",candidate=\"SAGE_ATTN\","
        "role=\"self\",sigma_band=\"0.2-0.4\",le=\"0.05\"} 1",
        "denoised_shadow_relative_l2_sum{baseline=\"REFERENCE\",candidate=\"SAGE_ATTN\","
        "role=\"self\",sigma_band=\"0.2-0.4\"} 100.03",
        "denoised_shadow_seconds_total 0.25",
        "denoised_queue_wait_seconds_count{priority=\"NORMAL\"} 1",
        "denoised_jobs_total{model=\"m\",outcome=\"SUCCEEDED\"} 1",
        "denoised_model_load_seconds_count{model=\"m\"} 1",
        "denoised_rpc_seconds_count{code=\"NOT_FOUND\",method=\"GetJob\"} 1",
        "denoised_build_info{version=\"1.2.3\"} 1"}) {
    EXPECT_THAT(page, HasSubstr(std::string(line) + "\n"));
  }
}

TEST(MetricsTest, APageOfAnySizeIsTheSameWhetherItsPiecesAreTakenAwayOrNot) {
  Metrics metrics("1");
  for (int i = 0; i < 100; ++i) metrics.OnStep("model " + std::to_string(i), 0.5);
  std::string text, piece;
  const auto page = metrics.Page();
  int pieces = 0;
  for (bool more = true; more; piece.clear(), ++pieces) {
    more = page(&piece);
    text += piece;
  }
  EXPECT_GT(pieces, 3);
  EXPECT_EQ(text, PageOf(&metrics));
}

TEST(MetricsTest, AFolderHasTheFailureOfItsLastLoadingAndNoneOnceItIsMended) {
  Metrics metrics("1");
  metrics.OnModelFailed("m", "MISSING_FILE");
  metrics.OnModelFailed("n", "MISSING_FILE");
  metrics.OnModelFailed("m", "INVALID_MODEL");
  const std::string failed = "denoised_model_load_failed{model=\"m\",reason=";
  EXPECT_THAT(PageOf(&metrics), HasSubstr(failed + "\"INVALID_MODEL\"} 1\n"));
  EXPECT_THAT(PageOf(&metrics), Not(HasSubstr(failed + "\"MISSING_FILE\"")));
  EXPECT_THAT(PageOf(&metrics), HasSubstr("denoised_models_failed 2\n"));
  metrics.OnModelLoaded("m", 1);
  EXPECT_THAT(PageOf(&metrics), Not(HasSubstr(failed)));
  EXPECT_THAT(PageOf(&metrics), HasSubstr("denoised_models_failed 1\n"));
  EXPECT_THAT(PageOf(&metrics), HasSubstr("denoised_model_unloads_total{model=\"m\"} 0\n"));
  metrics.OnModelUnloaded("m");
  EXPECT_THAT(PageOf(&metrics), HasSubstr("denoised_model_unloads_total{model=\"m\"} 1\n"));
}

TEST(MetricsTest, CountersOfClosedLabelSetsBeginAtZero) {
  Metrics metrics("1");
  metrics.OnModelLoaded("m", 1);
  const std::string page = PageOf(&metrics);
  for (SelectionSource source : kSelectionSources) {
    EXPECT_THAT(page, HasSubstr("denoised_backend_switch_total{cause=\"" +
                                std::string(SelectionSourceName(source)) + "\"} 0\n"));
  }
  for (AttnBackend backend : AllAttnBackends()) {
    for (const char* role : {"self", "cross", "text_encoder", "vae"}) {
      EXPECT_THAT(
          page, HasSubstr("denoised_attention_calls_total{backend=\"" +
                          std::string(AttnBackendName(backend)) + "\",role=\"" + role + "\"} 0\n"));
    }
  }
  for (const char* outcome : {"SUCCEEDED", "FAILED", "CANCELLED"}) {
    EXPECT_THAT(page, HasSubstr("denoised_jobs_total{model=\"m\",outcome=\"" +
                                std::string(outcome) + "\"} 0\n"));
  }
  for (const char* reason : {"force", "request", "environment", "model_default"}) {
    EXPECT_THAT(page, HasSubstr("denoised_attention_fallback_total{from=\"SAGE_ATTN\",reason=\"" +
                                std::string(reason) + "\",to=\"FLASH_ATTN\"} 0\n"));
  }
}

TEST(MetricsTest, ABreakerIsOneWhileItIsOpenAndZeroLater) {
  Metrics metrics("1");
  EXPECT_THAT(PageOf(&metrics), Not(HasSubstr("denoised_breaker_open{")));
  Metrics::Gauges gauges;
  gauges.breakers = {{"m", AttnBackend::kSageAttn}};
  metrics.SetGaugeSource([&] { return gauges; });
  const std::string series = "denoised_breaker_open{backend=\"SAGE_ATTN\",model=\"m\"} ";
  EXPECT_THAT(PageOf(&metrics), HasSubstr(series + "1\n"));
  gauges.breakers.clear();
  EXPECT_THAT(PageOf(&metrics), HasSubstr(series + "0\n"));
}

TEST(MetricsTest, AttentionWhoseTimeIsNotKnownIsCountedAndNotTimed) {
  Metrics metrics("1");
  metrics.OnAttention(AttnBackend::kFlashAttn, AttentionRole::kCross, 30, std::nullopt);
  const std::string page = PageOf(&metrics);
  EXPECT_THAT(page,
              HasSubstr("denoised_attention_calls_total{backend=\"FLASH_ATTN\",role=\"cross\"} "
                        "30\n"));
  EXPECT_THAT(page, Not(HasSubstr("denoised_attention_seconds_count{backend=\"FLASH_ATTN\"")));
}

TEST(MetricsTest, BucketsReachFromAMillisecondToAnHour) {
  Metrics metrics("1");
  metrics.OnStep("m", 3000);
  const std::string page = PageOf(&metrics);
  EXPECT_THAT(page, HasSubstr("denoised_step_seconds_bucket{model=\"m\",le=\"0.001\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("denoised_step_seconds_bucket{model=\"m\",le=\"3600\"} 1\n"));
}

TEST(MetricsTest, NoSeriesTwiceAndNoIdsInLabels) {
  Metrics metrics("1");
  for (int i = 0; i < 3; ++i) ReportEverything(&metrics);
  metrics.SetGaugeSource([] {
    return Metrics::Gauges{
        3,
        1,
        4,
        {{{AttnBackend::kReference, "server"}, 2}, {{AttnBackend::kSageAttn, "job"}, 1}},
        {},
        7,
        {{"public", {5, 6}}},
        false,
        0,
        {}};
  });
  const std::vector<std::string> series = SeriesOf(PageOf(&metrics));
  EXPECT_EQ(std::set<std::string>(series.begin(), series.end()).size(), series.size());
  EXPECT_LT(series.size(), 2000u);
}

TEST(MetricsTest, GaugesFollowTheirSource) {
  Metrics metrics("1");
  EXPECT_THAT(PageOf(&metrics), HasSubstr("denoised_queue_depth 0\n"));
  metrics.SetGaugeSource([] {
    return Metrics::Gauges{
        3,
        1,
        4,
        {{{AttnBackend::kReference, "server"}, 2}, {{AttnBackend::kSageAttn, "job"}, 1}},
        {},
        7,
        {{"public", {5, 6}}},
        false,
        0,
        {}};
  });
  const std::string page = PageOf(&metrics);
  EXPECT_THAT(page, HasSubstr("denoised_queue_depth 3\n"));
  EXPECT_THAT(page, HasSubstr("denoised_jobs_running 1\n"));
  EXPECT_THAT(page, HasSubstr("denoised_sessions_open 4\n"));
  EXPECT_THAT(page, HasSubstr("denoised_log_lines_dropped_total 7\n"));
  EXPECT_THAT(page, HasSubstr("denoised_connections{listener=\"public\"} 5\n"));
  EXPECT_THAT(page, HasSubstr("denoised_connections_refused_total{listener=\"public\"} 6\n"));
  EXPECT_THAT(page, HasSubstr("denoised_lease_active{backend=\"REFERENCE\",scope=\"server\"} 2\n"));
  EXPECT_THAT(page,
              HasSubstr("denoised_lease_active{backend=\"TORCH_SDPA\",scope=\"server\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("denoised_lease_active{backend=\"SAGE_ATTN\",scope=\"job\"} 1\n"));
  metrics.SetGaugeSource({});
  EXPECT_THAT(PageOf(&metrics), HasSubstr("denoised_queue_depth 0\n"));
  EXPECT_THAT(PageOf(&metrics), Not(HasSubstr("scope=\"job\"")));
  EXPECT_THAT(PageOf(&metrics), HasSubstr("denoised_log_lines_dropped_total 7\n"))
      << "a counter never goes back";
}

TEST(MetricsTest, CountsFromManyThreadsAddUp) {
  Metrics metrics("1");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) ReportEverything(&metrics);
    });
  }
  for (int i = 0; i < 20; ++i) PageOf(&metrics);
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(PageOf(&metrics), HasSubstr("denoised_step_seconds_count{model=\"m\"} 2000\n"));
}

TEST(MetricsTest, PromtoolHasNothingToSay) {
  if (std::system("command -v promtool >/dev/null") != 0) {
    GTEST_SKIP() << "promtool (Debian package prometheus) is not installed";
  }
  Metrics metrics("1");
  ReportEverything(&metrics);
  const std::string path = ::testing::TempDir() + "page_" + std::to_string(getpid());
  std::ofstream(path) << PageOf(&metrics);
  std::FILE* pipe = popen(("promtool check metrics <" + path + " 2>&1").c_str(), "r");
  std::string said;
  for (int c; (c = std::fgetc(pipe)) != EOF;) said += static_cast<char>(c);
  EXPECT_EQ(pclose(pipe), 0);
  EXPECT_EQ(said, "");
  unlink(path.c_str());
}

}  // namespace
}  // namespace denoised
