// The server's flags, its file and its environment variable.
#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "denoised/v1/config.pb.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

// The one line that a wrong command line gets.
std::string Complaint(const std::vector<std::string>& arguments) {
  try {
    ParseConfig(arguments);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

class ConfigTest : public ::testing::Test {
 protected:
  ~ConfigTest() override {
    unlink(path_.c_str());
    unsetenv("FASTVIDEO_ATTENTION_BACKEND");
  }
  std::string FileWith(const std::string& text) {
    std::ofstream(path_) << text;
    return "--config=" + path_;
  }
  const std::string path_ =
      ::testing::TempDir() + "denoised_config_" + std::to_string(getpid()) + ".textproto";
};

TEST_F(ConfigTest, DefaultsAreTheContractsOnes) {
  const Config config = ParseConfig({});
  EXPECT_EQ(config.engine.model_repository, "model_repository");
  EXPECT_EQ(config.listen.ToString(), "127.0.0.1:50051");
  EXPECT_EQ(config.admin_listen.ToString(), "127.0.0.1:50052");
  EXPECT_EQ(config.http_listen.ToString(), "127.0.0.1:8080");
  EXPECT_EQ(config.engine.device, "auto");
  EXPECT_EQ(config.engine.dtype, "auto");
  EXPECT_EQ(config.drain_grace, std::chrono::seconds(30));
  EXPECT_FALSE(config.engine.environment_backend);
}

TEST_F(ConfigTest, LimitsOfRunningJobsAreNumbersOrAuto) {
  EXPECT_EQ(ParseConfig({}).engine.max_running_jobs, 0);
  EXPECT_EQ(ParseConfig({"--max_running_jobs=7"}).engine.max_running_jobs, 7);
  EXPECT_EQ(ParseConfig({"--max_resident_mib=3"}).engine.max_resident_bytes, 3 << 20);
  for (const char* name : {"max_running_jobs", "max_resident_mib"}) {
    const std::string flag = "--" + std::string(name) + "=";
    const EngineOptions engine = ParseConfig({flag + "auto"}).engine;
    EXPECT_EQ(engine.max_running_jobs, 0);
    EXPECT_EQ(engine.max_resident_bytes, 0);
    for (const char* wrong : {"automatic", "-1", "1.5", "", "9999999"}) {
      EXPECT_THAT(Complaint({flag + wrong}), HasSubstr(flag.substr(0, flag.size() - 1))) << wrong;
    }
  }
  const Config file = ParseConfig({FileWith("max_running_jobs: 0 max_resident_mib: 5")});
  EXPECT_EQ(file.engine.max_resident_bytes, 5 << 20);
}

TEST_F(ConfigTest, AutoErrorIsExactOrANumber) {
  EXPECT_FALSE(ParseConfig({}).engine.auto_error);
  EXPECT_EQ(ParseConfig({"--auto_error=0.01"}).engine.auto_error, 0.01);
  EXPECT_EQ(ParseConfig({"--auto_error=0"}).engine.auto_error, 0);
  EXPECT_FALSE(
      ParseConfig({FileWith("auto_error: \"0.5\""), "--auto_error=exact"}).engine.auto_error);
  for (const char* wrong : {"1.1", "-0.1", "nan", "close", ""}) {
    EXPECT_THAT(Complaint({std::string("--auto_error=") + wrong}), HasSubstr("--auto_error"));
  }
  EXPECT_FALSE(ParseConfig({}).engine.tune_when_idle);
  EXPECT_TRUE(ParseConfig({"--tune_when_idle"}).engine.tune_when_idle);
}

TEST_F(ConfigTest, WhatComparisonsMayAddIsAPercentage) {
  EXPECT_EQ(ParseConfig({}).engine.shadow_budget, 0.02);
  EXPECT_EQ(ParseConfig({"--shadow_budget=5%"}).engine.shadow_budget, 0.05);
  EXPECT_EQ(ParseConfig({"--shadow_budget=0.5"}).engine.shadow_budget, 0.005);
  EXPECT_EQ(ParseConfig({FileWith("shadow_budget: '0'")}).engine.shadow_budget, 0);
  for (const char* wrong : {"51%", "-1", "two", "", "%", "nan"}) {
    EXPECT_THAT(Complaint({"--shadow_budget=" + std::string(wrong)}), HasSubstr("shadow_budget"))
        << wrong;
  }
}

TEST_F(ConfigTest, WhatHangsIsATimeOrNothing) {
  using std::chrono::seconds;
  EXPECT_EQ(ParseConfig({}).engine.hung_after, seconds(60));
  EXPECT_EQ(ParseConfig({"--hung_after=5m"}).engine.hung_after, seconds(300));
  EXPECT_EQ(ParseConfig({FileWith("hung_after: '0s'")}).engine.hung_after, seconds(0));
  for (const char* wrong : {"999ms", "25h", "-1s", "soon", "", "60"}) {
    EXPECT_THAT(Complaint({"--hung_after=" + std::string(wrong)}), HasSubstr("hung_after"))
        << wrong;
  }
}

TEST_F(ConfigTest, HelpNamesEveryFieldOfTheFileAndItsDefault) {
  const std::string help = ConfigHelp();
  const auto* file = v1::ServerConfig::descriptor();
  for (int i = 0; i < file->field_count(); ++i) {
    EXPECT_THAT(help, HasSubstr("--" + file->field(i)->name())) << "not a flag";
  }
  EXPECT_THAT(help, HasSubstr("127.0.0.1:50052"));
  EXPECT_THAT(help, HasSubstr("FASTVIDEO_ATTENTION_BACKEND"));
}

TEST_F(ConfigTest, EveryFieldOfTheFileIsApplied) {
  const Config config = ParseConfig({FileWith(
      "model_repository: 'm' listen: '127.0.0.1:1' admin_listen: '[::1]:2' http_listen: "
      "'localhost:3' device: 'cuda:1' dtype: 'bfloat16' threads: 2 max_queued_jobs: 3 "
      "max_queued_denoise_calls: 4 max_finished_jobs: 5 max_artifact_mib: 6 max_message_mib: 7 "
      "drain_grace: '1500ms' log_level: 'error' insecure_public: true "
      "admit_unmeasured: true enable_drills: true cpu_isa: 'avx512_vnni' max_memory: '8GiB' "
      "linear: 'int8' vae_dtype: 'bfloat16' keep_text_encoder: 'never'")});
  EXPECT_EQ(config.engine.model_repository, "m");
  EXPECT_EQ(config.listen.port, 1);
  EXPECT_EQ(config.admin_listen.ToString(), "[::1]:2");
  EXPECT_EQ(config.http_listen.host, "localhost");
  EXPECT_EQ(config.engine.device, "cuda:1");
  EXPECT_EQ(config.engine.dtype, "bfloat16");
  EXPECT_EQ(config.engine.threads, 2);
  EXPECT_TRUE(config.engine.admit_unmeasured);
  EXPECT_TRUE(config.engine.enable_drills);
  EXPECT_EQ(config.cpu_isa, CpuIsa::kAvx512Vnni);
  EXPECT_EQ(config.engine.linear, LinearNumerics::kInt8);
  EXPECT_EQ(config.engine.vae_dtype, "bfloat16");
  EXPECT_EQ(config.engine.keep_text_encoder, "never");
  EXPECT_EQ(config.engine.max_queued_jobs, 3);
  EXPECT_EQ(config.engine.max_queued_denoise_calls, 4);
  EXPECT_EQ(config.engine.max_finished_jobs, 5);
  EXPECT_EQ(config.engine.max_artifact_bytes, 6 << 20);
  EXPECT_EQ(config.max_message_bytes, 7 << 20);
  EXPECT_EQ(config.engine.max_memory, "8GiB");
  EXPECT_EQ(config.drain_grace, std::chrono::milliseconds(1500));
  EXPECT_EQ(config.log_level, LogLevel::kError);
  EXPECT_TRUE(config.insecure_public);
}

TEST_F(ConfigTest, TheStateFolderIsTheUsersUnlessOneIsNamed) {
  setenv("XDG_STATE_HOME", "/somewhere", 1);
  EXPECT_EQ(ParseConfig({}).engine.state_dir, "/somewhere/denoised");
  setenv("XDG_STATE_HOME", "relative", 1);  // which the specification says to ignore
  setenv("HOME", "/home/somebody", 1);
  EXPECT_EQ(ParseConfig({}).engine.state_dir, "/home/somebody/.local/state/denoised");
  unsetenv("XDG_STATE_HOME");
  unsetenv("HOME");
  EXPECT_THROW(ParseConfig({}), UsageError);
  EXPECT_EQ(ParseConfig({"--state_dir=none"}).engine.state_dir, "");
  EXPECT_EQ(ParseConfig({FileWith("state_dir: 'none' keep_results: '2d'")}).engine.keep_results,
            std::chrono::hours(48));
  setenv("HOME", "/home/somebody", 1);
  EXPECT_EQ(ParseConfig({}).engine.keep_results, std::chrono::hours(7 * 24));
}

TEST_F(ConfigTest, AGivenRepositoryIsToldFromTheDefaultOne) {
  EXPECT_FALSE(ParseConfig({}).model_repository_given);
  EXPECT_TRUE(ParseConfig({"--model_repository=model_repository"}).model_repository_given);
  EXPECT_TRUE(ParseConfig({FileWith("model_repository: 'm'")}).model_repository_given);
}

TEST_F(ConfigTest, FlagsWinOverTheFileWhereverTheyStand) {
  const std::string file = FileWith("threads: 2 max_queued_jobs: 9");
  for (const auto& arguments : {std::vector<std::string>{"--threads=5", file},
                                std::vector<std::string>{file, "--threads", "5"}}) {
    const Config config = ParseConfig(arguments);
    EXPECT_EQ(config.engine.threads, 5);
    EXPECT_EQ(config.engine.max_queued_jobs, 9);
  }
}

TEST_F(ConfigTest, MistakesAreNamedInOneLine) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"--lisen=127.0.0.1:1", "--listen"},
      {"--listen=127.0.0.1", "--listen"},
      {"--listen=127.0.0.1:70000", "70000"},
      {"--listen=:50051", "--listen"},
      {"--listen=::1:50051", "--listen"},
      {"--threads=-1", "--threads"},
      {"--threads=2x", "2x"},
      {"--threads=", "--threads"},
      {"--max_queued_jobs=0", "1 to 100000"},
      {"--max_message_mib=99999999999999999999", "--max_message_mib"},
      {"--dtype=int8", "float32"},
      {"--device=cuda", "cuda:0 is the first GPU"},
      {"--model_repository=", "--model_repository"},
      {"--cpu_isa=sse2", "avx512_vnni"},
      {"--linear=int4", "packed"},
      {"--vae_dtype=float16", "auto, float32, bfloat16"},
      {"--keep_text_encoder=sometimes", "auto, always, never"},
      {"--device=cuda:x", "cuda:N"},
      {"--drain_grace=5", "30s"},
      {"--drain_grace=100h", "24h"},
      {"--log_level=loud", "warning"},
      {"--insecure_public=maybe", "true or false"},
      {"--config=/no/such/file", "/no/such/file"},
      {"--state_dir=/proc/denoised", "--state_dir"},
      {"--state_dir", "needs a value"},
      {"--state_dir=", "a folder or none"},
      {"--keep_results=7", "30s"},
      {"--keep_results=10ms", "1s or longer"},
      {"--max_memory=lots", "--max_memory"},
      {"--max_memory=8", "--max_memory"},
      {"--max_memory=12KiB", "--max_memory"},
      {"stray", "stray"},
      {"-x", "-x"},
  };
  for (const auto& [argument, part] : cases) {
    const std::string complaint = Complaint({argument});
    EXPECT_THAT(complaint, HasSubstr(part)) << argument;
    EXPECT_EQ(complaint.find('\n'), std::string::npos);
  }
  EXPECT_THAT(Complaint({"--threads=1", "--threads=2"}), HasSubstr("twice"));
}

TEST_F(ConfigTest, MistakesInTheFileAreNamedToo) {
  EXPECT_THAT(Complaint({FileWith("lisen: 'x'")}), HasSubstr("line 1"));
  EXPECT_THAT(Complaint({FileWith("threads: 'two'")}), HasSubstr("line 1"));
  EXPECT_THAT(Complaint({FileWith("threads: 5000")}), HasSubstr("--threads"));
}

TEST_F(ConfigTest, PublicAddressesNeedToBeSpelledOut) {
  for (const char* flag : {"--listen", "--admin_listen", "--http_listen"}) {
    for (const char* host : {"0.0.0.0", "[::]", "192.168.1.1", "127.example.org", "example.org"}) {
      const std::string argument = std::string(flag) + "=" + host + ":1";
      EXPECT_THAT(Complaint({argument}), HasSubstr("--insecure_public")) << argument;
      EXPECT_EQ(Complaint({argument, "--insecure_public"}), "") << argument;
    }
    for (const char* host : {"127.0.0.1", "127.8.9.1", "[::1]", "localhost"}) {
      EXPECT_EQ(Complaint({std::string(flag) + "=" + host + ":0"}), "");
    }
  }
}

TEST_F(ConfigTest, EnvironmentChoosesTheBackendAndUnknownNamesAreWrongUse) {
  setenv("FASTVIDEO_ATTENTION_BACKEND", "TORCH_SDPA", 1);
  EXPECT_EQ(ParseConfig({}).engine.environment_backend, AttnBackend::kTorchSdpa);
  setenv("FASTVIDEO_ATTENTION_BACKEND", " ", 1);
  EXPECT_FALSE(ParseConfig({}).engine.environment_backend);
  setenv("FASTVIDEO_ATTENTION_BACKEND", "torch", 1);
  const std::string complaint = Complaint({});
  EXPECT_THAT(complaint, HasSubstr("FASTVIDEO_ATTENTION_BACKEND"));
  EXPECT_THAT(complaint, HasSubstr("\"torch\""));
  EXPECT_THAT(complaint, HasSubstr("TORCH_SDPA"));
}

}  // namespace
}  // namespace denoised
