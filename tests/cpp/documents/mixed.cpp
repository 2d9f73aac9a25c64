// A program of two files: this one of the original's kind, and mixed_plain.cpp, which knows tr_mmap only. Both have the
// same types, and print a shape in the same way.
#include "tech_renaissance.h"
using namespace tr;

extern "C" int use_tr_mmap_only(const PythonSession* session, Tensor* tensor, std::string* text);

int main() {
    PyTorchSession session("default", "mixed_document", true);
    session.start();
    Tensor tensor = Tensor::full(Shape(2, 3), 3.0f);
    std::string text;
    if (use_tr_mmap_only(&session, &tensor, &text) != 0) return 1;
    std::ostringstream own;
    own << tensor.shape();
    std::cout << own.str() << ' ' << text << ' ' << tensor.data<float>()[5] << std::endl;
    return own.str() == text ? 0 : 2;
}
