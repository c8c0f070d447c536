// tune: measurements of backends on a server, and between servers.
#include "server/cli/tune_command.h"

#include <google/protobuf/util/time_util.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>

#include "denoised/v1/admin.grpc.pb.h"
#include "runtime/measured_table.h"
#include "runtime/tuner.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/output.h"
#include "server/cli/output_file.h"
#include "server/cli/text.h"

namespace denoised::cli {
namespace {

using Stub = v1::AdminService::Stub;
using Numbers = google::protobuf::RepeatedField<int64_t>;

// Of a TuneProgress or a MeasuredChoice.
template <class Message>
std::string RowText(const Message& message) {
  return ToText(MeasuredRow{AttnBackend::kReference, message.seconds(), message.relative_l2()});
}

// "96,1560" as numbers of the flag's range.
std::function<void(const std::string&)> SetList(const std::string& name, int64_t most,
                                                Numbers* target) {
  return [=](const std::string& text) {
    std::istringstream parts(text + ",");
    for (std::string part; std::getline(parts, part, ',');) {
      SetInt(name, 1, most, [&](int64_t number) { target->Add(number); })(part);
    }
  };
}

std::string ReadDocument(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file) return text;
  throw CommandError("cannot read " + OneLine(path, 100) + ": " + std::strerror(errno));
}

int Import(const std::string& path, const std::unique_ptr<Stub>& stub,
           const CommonOptions& options) {
  v1::Measurements measurements;
  measurements.set_json(ReadDocument(path));
  const auto reply = Call(stub, &Stub::ImportMeasurements, measurements, options.admin);
  if (options.json) {
    PrintJson(reply);
    return kExitOk;
  }
  PrintLine("took the measurements of " + std::to_string(reply.taken()) + " kinds of calls");
  if (!reply.note().empty()) PrintLine(reply.note());
  return kExitOk;
}

std::string Line(const v1::TuneProgress& progress) {
  const std::string count =
      std::to_string(progress.done()) + "/" + std::to_string(progress.total());
  const std::string result = progress.has_seconds()
                                 ? RowText(progress)
                                 : "not measured: " + OneLine(progress.why_not(), 200);
  return count + " " + progress.backend() + ": " + result + " (" + progress.key() + ")";
}

void Measure(const v1::TuneRequest& request, const std::unique_ptr<Stub>& stub,
             const CommonOptions& options, std::FILE* words) {
  RequireUtf8(request);
  grpc::ClientContext context;
  const auto reader = stub->Tune(&context, request);
  for (v1::TuneProgress progress; reader->Read(&progress);) {
    if (options.json) {
      PrintJson(progress);
    } else {
      PrintLine(Line(progress), words);
      std::fflush(words);
    }
  }
  CheckStatus(reader->Finish(), options.admin);
}

int Tune(const Invocation& call) {
  CommonOptions options;
  v1::TuneRequest request;
  std::string read, write;
  const std::vector<Flag> flags = {
      {"model", "NAME", "", "Whose attention to measure; unset: every model's.",
       SetString(request.mutable_model())},
      {"lengths", "N,N,...", "",
       "Tokens of the video, each 1 to " + std::to_string(TuneQuery::kLongest) +
           "; unset: those of the model's default size.",
       SetList("lengths", TuneQuery::kLongest, request.mutable_lengths())},
      {"rows", "N,N,...", "1,2",
       "Rows of a forward, each 1 to " + std::to_string(TuneQuery::kMostRows) +
           "; a job with guidance brings two.",
       SetList("rows", TuneQuery::kMostRows, request.mutable_rows())},
      {"write", "FILE", "", "Then writes all that the server has measured to a file, as JSON.",
       SetString(&write)},
      {"read", "FILE", "", "Gives the server what --write wrote instead of measuring.",
       SetString(&read)}};
  if (!ParseCommand(call, flags, &options, 0, 0)) return kExitOk;
  if (!read.empty() && !write.empty()) throw UsageError("--read and --write exclude each other");
  const auto stub = AdminStub(options.admin);
  if (!read.empty()) return Import(read, stub, options);
  std::optional<OutputFile> file;
  if (!write.empty()) RefuseJsonAmongBytes(options, file.emplace(write, call.interrupts));
  Measure(request, stub, options, file ? WordsOf(*file) : stdout);
  if (!file) return kExitOk;
  file->Write(
      Call(stub, &Stub::ExportMeasurements, v1::ExportMeasurementsRequest(), options.admin).json());
  file->Commit();
  if (!options.json) PrintAbout([&] { PrintWritten(*file); });
  return kExitOk;
}

}  // namespace

std::string MeasuredText(const v1::MeasuredChoice& measured) {
  const std::string note = measured.note().empty() ? "" : "; " + measured.note();
  if (!measured.has_seconds()) return "nothing for " + measured.key() + note;
  return RowText(measured) + ", for " + measured.key() + ", " +
         google::protobuf::util::TimeUtil::ToString(measured.measured_at()) + note;
}

std::vector<Command> TuneCommands() {
  return {
      {"tune", "", "Measures attention backends on the server, for its automatic choice.",
       Uses::kAdmin, Tune,
       "  denoisectl tune --model=shapes\n"
       "  denoisectl tune --lengths=1560,6240 --write=measured.json\n"
       "  denoisectl tune --read=measured.json --admin=127.0.0.1:60052\n",
       "\nOf the backends that may be chosen unasked (denoised --auto_error) jobs that begin later "
       "get the\nfastest; those that have begun keep theirs. Each measurement is short, and jobs "
       "go on in between.\n"},
  };
}

}  // namespace denoised::cli
