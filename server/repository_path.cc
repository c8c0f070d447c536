#include "server/repository_path.h"

#include "backends/error.h"

namespace denoised {

namespace fs = std::filesystem;

std::string FindModelRepository(const fs::path& working_folder, const fs::path& program) {
  const fs::path name = "model_repository";
  std::error_code error;
  if (fs::is_directory(working_folder / name, error)) return name;
  const fs::path installed =
      (program.parent_path() / "../share/denoised" / name).lexically_normal();
  if (fs::is_directory(installed, error)) return installed;
  throw Error(StatusCode::kNotFound,
              "no models: there is neither " + (working_folder / name).string() + " nor " +
                  installed.string() +
                  "; --model_repository=DIR names a folder of models (or one model's folder)",
              "model_repository");
}

std::string FindModelRepository() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  return FindModelRepository(fs::current_path(error), program);
}

}  // namespace denoised
