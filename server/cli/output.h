// What denoisectl writes on its standard output: JSON lines, tables and receipts for people.
//
// Everything for people goes through PrintLine, which makes text of others harmless; help texts,
// which are our own, go through PrintText. What cannot be written ends the command.
#ifndef DENOISED_SERVER_CLI_OUTPUT_H_
#define DENOISED_SERVER_CLI_OUTPUT_H_

#include <google/protobuf/message.h>

#include <cstdio>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "denoised/v1/generation.pb.h"

namespace denoised::cli {

// Whoever read our standard output has closed it (`denoisectl jobs | head -n 1`): no error to talk
// about. Main ends as SIGPIPE would have.
class ReaderLeft : public std::exception {};

// One line, escaped (VisibleText). Throws CommandError or ReaderLeft for what standard output does
// not take; on standard error nothing is checked.
void PrintLine(std::string_view line, std::FILE* stream = stdout);
void PrintText(const std::string& text);
// Hands over what is buffered; as PrintLine.
void FlushOutput();
// Runs `print`, which tells about a result that is written already: a reader that left changes
// nothing about that.
void PrintAbout(const std::function<void()>& print);

// With the proto's field names, also for fields that are false, 0, "" or [].
std::string Json(const google::protobuf::Message& message);
// One line of it on stdout, flushed for readers that follow a stream. The bytes of a chunk are left
// out: they are in the file.
void PrintJson(const google::protobuf::Message& message);

// Which backend ran for each role and why others did not, the seed and the fingerprint.
void PrintReceipt(const v1::Job& job, std::FILE* stream = stdout);

// Columns padded to their widest cell. The first row is the head.
void PrintTable(const std::vector<std::vector<std::string>>& rows);

// Who decided for a backend, in words; as in ReceiptEntry.
std::string WhoChose(const std::string& source, const std::string& lease_id,
                     std::optional<int64_t> rule = std::nullopt);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_OUTPUT_H_
