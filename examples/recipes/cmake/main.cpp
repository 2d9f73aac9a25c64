// Asks a Python worker for what C++ has no library for here: singular values.
#include <iostream>

#include <tr_mmap/tr_mmap.hpp>

int main() {
    try {
        tr::PythonSession session(WORKER, "cmake_recipe");
        session.start();
        if (!session.wait_until_ready(60'000)) throw std::runtime_error("no worker");

        tr::Tensor matrix = session.empty<double>(tr::Shape(2, 2));  // a loan: never copied
        matrix.fill(0.0);
        matrix.data<double>()[0] = 3;
        matrix.data<double>()[3] = -2;
        const tr::Tensor values = session.calculate("singular_values", matrix);
        std::cout << "largest singular value: " << values.data<double>()[0] << std::endl;
        return 0;
    } catch (const std::exception& error) {  // tr::TRException is one
        std::cerr << error.what() << std::endl;
        return 1;
    }
}
