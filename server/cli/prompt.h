// Where a prompt comes from: the command line, a file, standard input.
#ifndef DENOISED_SERVER_CLI_PROMPT_H_
#define DENOISED_SERVER_CLI_PROMPT_H_

#include <string>
#include <vector>

#include "server/flags.h"

namespace denoised::cli {

// --prompt_file.
Flag PromptFileFlag(std::string* path);

// Throws UsageError where there is no prompt or more than one. Before anything is read or opened.
void RequirePrompt(const std::vector<std::string>& arguments, const std::string& file);

// The prompt: `arguments` has it, or is "-" for standard input, or is empty and `file` names where
// it is ("-" again: standard input). A byte order mark and one line end at the end are not part of
// it. Throws CommandError for a file that cannot be read, is empty or is larger than a prompt may
// be, and as RequirePrompt.
std::string ReadPrompt(const std::vector<std::string>& arguments, const std::string& file);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_PROMPT_H_
