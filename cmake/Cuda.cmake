# The CUDA side of the build: nvcc, and the wheels that LibTorch's CUDA half and our backends load.
#
# denoised::cudnn is cuDNN with its header-only graph API. The architectures are the devices that the
# kernels are written for; others are refused by Supports.
set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real")
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)  # LibTorch's; a second one would have streams of its own
if(NOT CMAKE_CUDA_COMPILER)
  find_program(nvcc nvcc HINTS "$ENV{CUDACXX}" /usr/local/cuda/bin)
  if(NOT nvcc)
    message(FATAL_ERROR "DENOISED_CUDA needs nvcc (CUDA 13.0); set CMAKE_CUDA_COMPILER to it.")
  endif()
  set(CMAKE_CUDA_COMPILER "${nvcc}")
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 12 and later do
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
find_package(CUDAToolkit REQUIRED)

# In LibTorch's own folder where that is a whole Python environment, else beside it.
find_path(DENOISED_CUDNN_FRONTEND cudnn_frontend.h NO_DEFAULT_PATH
          PATHS "${DENOISED_CUDA_WHEELS}/include" "${DENOISED_LIBTORCH}/include")
find_path(DENOISED_CUDNN_INCLUDE cudnn.h NO_DEFAULT_PATH
          PATHS "${DENOISED_CUDA_WHEELS}/nvidia/cudnn/include" "${DENOISED_LIBTORCH}/nvidia/cudnn/include")
find_file(DENOISED_CUDNN_LIBRARY libcudnn.so.9 NO_DEFAULT_PATH
          PATHS "${DENOISED_CUDA_WHEELS}/nvidia/cudnn/lib" "${DENOISED_LIBTORCH}/nvidia/cudnn/lib")
if(NOT DENOISED_CUDNN_FRONTEND OR NOT DENOISED_CUDNN_INCLUDE OR NOT DENOISED_CUDNN_LIBRARY)
  message(FATAL_ERROR "cuDNN and its graph API not found in ${DENOISED_CUDA_WHEELS}. "
                      "Run deploy/setup.sh --cuda, or set DENOISED_CUDA_WHEELS to the folder that "
                      "holds nvidia/ and include/.")
endif()
add_library(denoised_cudnn INTERFACE)
add_library(denoised::cudnn ALIAS denoised_cudnn)
target_include_directories(denoised_cudnn SYSTEM INTERFACE
  "${DENOISED_CUDNN_FRONTEND}" "${DENOISED_CUDNN_INCLUDE}")
# The graph API compiles kernels of its own at run time; the library comes with the wheels.
target_link_libraries(denoised_cudnn INTERFACE "${DENOISED_CUDNN_LIBRARY}" CUDA::nvrtc)

# FlashAttention-3 is optional at run time: the path is compiled in, a missing file means FA2.
find_file(DENOISED_FLASH3 fa3_fwd/_C.abi3.so NO_DEFAULT_PATH
          PATHS "${DENOISED_CUDA_WHEELS}" "${DENOISED_LIBTORCH}")
if(NOT DENOISED_FLASH3)
  message(STATUS "FlashAttention-3 (wheel fa3-fwd) not found: FLASH_ATTN uses LibTorch's FA2")
  set(DENOISED_FLASH3_PATH "")
else()
  set(DENOISED_FLASH3_PATH "${DENOISED_FLASH3}")
endif()

# Kernels in a library of their own: nvcc knows neither the precompiled header nor the host compiler's
# options.
function(denoised_cuda_library name)
  add_library(${name} STATIC ${ARGN})
  target_include_directories(${name} PRIVATE "${CMAKE_SOURCE_DIR}")
  target_compile_options(${name} PRIVATE
    --expt-relaxed-constexpr "-Xcompiler=-Wall,-Werror" "-Werror=all-warnings")
endfunction()
