// Run an ONNX file of one float32 input and one float32 output: run MODEL.onnx INPUT.f32
//
// INPUT.f32 holds the samples as raw float32, one after the other (numpy: array.tofile). The first axis is the
// batch, and the others must be fixed in the graph. Each line printed is one sample's output.

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

// The numbers in the file, which must be whole samples of `size` numbers.
std::vector<float> read_samples(const std::string& path, int64_t size) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot read " + path + ": check the path");
  const int64_t bytes = file.tellg();
  const int64_t sample = size * static_cast<int64_t>(sizeof(float));
  if (bytes <= 0 || bytes % sample != 0) {
    throw std::runtime_error("expected samples of " + std::to_string(sample) + " bytes in " + path + ", found " +
                             std::to_string(bytes) + " bytes: write them as raw float32");
  }
  std::vector<float> numbers(bytes / sizeof(float));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(numbers.data()), bytes)) throw std::runtime_error("cannot read " + path);
  return numbers;
}

void check_float(ONNXTensorElementDataType type, const std::string& what) {
  if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    throw std::runtime_error("the " + what + " is not float32: this example is for graphs of float32");
  }
}

void run(const std::string& graph, const std::string& input) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "run");
  // The default options fuse the quantized MatMuls; a lower graph optimization level would not.
  Ort::Session session(env, graph.c_str(), Ort::SessionOptions{});
  if (session.GetInputCount() != 1) throw std::runtime_error("expected a graph of one input: " + graph);

  Ort::TypeInfo type = session.GetInputTypeInfo(0);  // owns what `info` looks at
  const auto info = type.GetTensorTypeAndShapeInfo();
  check_float(info.GetElementType(), "input");
  std::vector<int64_t> shape = info.GetShape();
  if (shape.empty()) throw std::runtime_error("the input is a single number: expected a batch");
  int64_t size = 1;
  for (size_t axis = 1; axis < shape.size(); ++axis) {
    if (shape[axis] < 1) throw std::runtime_error("axis " + std::to_string(axis) + " of the input has no fixed size");
    size *= shape[axis];
  }
  std::vector<float> numbers = read_samples(input, size);
  shape[0] = static_cast<int64_t>(numbers.size()) / size;

  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto tensor = Ort::Value::CreateTensor<float>(memory, numbers.data(), numbers.size(), shape.data(), shape.size());
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input_name = session.GetInputNameAllocated(0, allocator);
  const auto output_name = session.GetOutputNameAllocated(0, allocator);
  const char* inputs[] = {input_name.get()};
  const char* outputs[] = {output_name.get()};
  const auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);

  const auto result = results[0].GetTensorTypeAndShapeInfo();
  check_float(result.GetElementType(), "output");
  const auto width = static_cast<int64_t>(result.GetElementCount()) / shape[0];
  const float* values = results[0].GetTensorData<float>();
  std::cout.precision(9);  // enough to give each float32 back
  for (int64_t sample = 0; sample < shape[0]; ++sample) {
    for (int64_t i = 0; i < width; ++i) std::cout << (i ? " " : "") << values[sample * width + i];
    std::cout << "\n";
  }
}

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "error: expected MODEL.onnx and INPUT.f32: run MODEL.onnx INPUT.f32\n";
    return 2;
  }
  try {
    run(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
