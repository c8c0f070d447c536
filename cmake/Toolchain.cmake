# Compiler, linker, cache and sanitizer settings for every target.

# x86-64-v3 is the floor; wider kernels are chosen at run time. Contraction is off so that host
# arithmetic gives the same bits as the Python references; kernels ask for FMA by name.
set(host_options -march=x86-64-v3 -ffp-contract=off -Wall -Wextra -Wvla -Walloca -Werror
                 -Wno-unused-parameter -fstack-protector-strong)
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${host_options}>")
add_compile_definitions(_GLIBCXX_USE_CXX11_ABI=1)
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")

find_program(MOLD mold)
if(MOLD)
  add_link_options(-fuse-ld=mold)
endif()

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_DIR=${DENOISED_CACHE}/ccache CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}
      CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_MAXSIZE=8G ${CCACHE})
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
endif()

if(DENOISED_SANITIZE)
  # GCC's warnings of uninitialised memory are false where its sanitizers' checks lie between.
  add_compile_options(-fsanitize=${DENOISED_SANITIZE} -fno-omit-frame-pointer
                      -fno-sanitize-recover=all -Wno-maybe-uninitialized)
  add_link_options(-fsanitize=${DENOISED_SANITIZE})
endif()
