from bifusion_hf.cli.convert_dinov2_onnx import main


if __name__ == "__main__":
    main()
